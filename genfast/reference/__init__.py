"""Every op in plain PyTorch: oracle of the tests, baseline of the benchmarks, fallback on other devices."""
