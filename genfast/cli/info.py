"""`genfast info`."""

from genfast.cli.errors import guarded


@guarded
def info() -> None:
    """Print versions, the instruction set in use, the CUDA build and the GPUs: the start of every bug report."""
    from genfast import _native

    facts = _native.info()
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        print(f"{name:<{width}}{value}")
