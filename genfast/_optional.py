"""Packages that only training and the command line need."""

import importlib
from typing import Any


class MissingPackageError(ImportError):
    """A package of an optional extra is not installed; the message says how to get it."""


_PACKAGES = {"sklearn": "scikit-learn", "lightning_fabric": "lightning-fabric", "PIL": "pillow"}
"""Names of packages that are not those of their modules."""


def require(module: str, purpose: str, *, extra: str = "train") -> Any:
    """Import `module`, or say how to install it.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
            raise
        package = _PACKAGES.get(error.name, error.name)
        raise MissingPackageError(
            f"{purpose} needs {package}, which is not installed; run: pip install 'genfast[{extra}]'"
        ) from error
