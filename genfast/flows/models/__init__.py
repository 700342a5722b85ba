"""Ready models: flows with defaults that train."""
