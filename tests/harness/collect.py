"""The specs and the small cases of all ops, collected from the modules of tests/ops."""

import functools
import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import torch

import tests.ops
from tests.harness.spec import OpSpec, Small


def all_specs() -> Iterator[tuple[str, OpSpec]]:
    """Every spec, with the name of its class."""
    for module in _modules():
        for name, kind in vars(module).items():
            spec = getattr(kind, "spec", None)
            if isinstance(kind, type) and kind.__module__ == module.__name__ and isinstance(spec, OpSpec):
                yield name, spec


def _modules() -> Iterator[ModuleType]:
    for found in pkgutil.iter_modules(tests.ops.__path__, "tests.ops."):
        yield importlib.import_module(found.name)


@functools.cache
def small_cases() -> dict[str, Small]:
    """By name, which starts with that of the public function and a space, or is that alone."""
    cases: dict[str, Small] = {}
    for module in _modules():
        cases |= getattr(module, "SMALL", {})
    for name, spec in all_specs():
        for case in spec.small:
            make = functools.partial(spec.inputs, case, torch.float64)
            cases[f"{spec.name} {case} of {name}"] = Small(make, spec.small_options or list(spec.variants.values()))
    return cases
