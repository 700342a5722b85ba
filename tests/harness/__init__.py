"""Every property that all ops share, run from one description of an op.

A test module gets all of them by

    class TestPlanarFlow(OpTests):
        spec = OpSpec(name="planar_flow", function=ops.planar_flow, reference=..., make=..., cases=[...], ...)
"""

import pytest

from tests.harness.inputs import InputTests
from tests.harness.spec import (
    HALF,
    BadInput,
    OpSpec,
    RecordOps,
    Small,
    cotangents_of,
    relative_error,
    vjp,
    with_gradients,
)
from tests.harness.transforms import TransformTests
from tests.harness.values import ValueTests

__all__ = [
    "HALF", "BadInput", "OpSpec", "OpTests", "RecordOps", "Small", "cotangents_of", "parametrize", "relative_error",
    "vjp", "with_gradients",
]  # fmt: skip


class OpTests(ValueTests, TransformTests, InputTests):
    """The shared properties; a subclass sets `spec`."""

    spec: OpSpec


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Give the tests of an OpTests class the cases, variants and bad inputs of its spec."""
    spec = getattr(metafunc.cls, "spec", None)
    if not isinstance(spec, OpSpec):
        return
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", spec.cases, ids=str)
    if "variant" in metafunc.fixturenames:
        first_only = getattr(metafunc.function, "first_variant", False)
        names = list(spec.variants)
        metafunc.parametrize(
            "variant",
            [
                pytest.param(spec.variants[n], id=n, marks=[pytest.mark.slow] if first_only and n != names[0] else [])
                for n in names
            ],
        )
    if "bad" in metafunc.fixturenames:
        bad = InputTests.standard_bad(spec) | spec.bad
        metafunc.parametrize("bad", list(bad.values()), ids=list(bad))
