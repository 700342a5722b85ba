"""The small cases of all ops, collected from the modules of tests/ops."""

import functools
import importlib
import pkgutil

import torch

import tests.ops
from tests.harness.spec import OpSpec, Small


@functools.cache
def small_cases() -> dict[str, Small]:
    """By name, which starts with that of the public function and a space, or is that alone."""
    cases: dict[str, Small] = {}
    for found in pkgutil.iter_modules(tests.ops.__path__, "tests.ops."):
        module = importlib.import_module(found.name)
        cases |= getattr(module, "SMALL", {})
        for kind in vars(module).values():
            spec = getattr(kind, "spec", None)
            if isinstance(kind, type) and kind.__module__ == module.__name__ and isinstance(spec, OpSpec):
                for case in spec.small:
                    make = functools.partial(spec.inputs, case, torch.float64)
                    options = spec.small_options or list(spec.variants.values())
                    cases[f"{spec.name} {case} of {kind.__name__}"] = Small(make, options)
    return cases
