"""The description of an op from which all its shared tests are made, and what these tests compare with."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

HALF = (torch.float16, torch.bfloat16)


@dataclasses.dataclass
class BadInput:
    """Arguments that must be refused: what replaces the good ones, the error and its whole text (a regex)."""

    change: Callable[[dict[str, Any]], dict[str, Any]]
    error: type[Exception]
    text: str


@dataclasses.dataclass
class Small:
    """A small case: tensors by name of the argument and the options to try; `exact` where backends give the same bits.

    `function` takes them where the public one takes lists of tensors.

    Specs make them of `small`; a module of tests/ops has a dict `SMALL` of them for functions without a spec, by the
    function's name and what tells it apart.
    """

    make: Callable[[], dict[str, Tensor]]
    options: Sequence[dict[str, Any]] = ({},)
    exact: bool = False
    function: Callable[..., Any] | None = None


@dataclasses.dataclass
class OpSpec:
    """One op.

    Attributes:
        name: the public function's name, key of the tolerance table.
        function: the public function; called with the tensors of `make` by name, and the options of a variant.
        reference: the same in plain PyTorch.
        make: (case, generator) -> float64 CPU tensors by argument name.
        cases: sizes to test; the first is small enough for numerical Jacobians.
        rows: arguments whose leading dimensions are samples; a NaN in the first one shows in every output.
        outputs: the kind of each output: "rows" (of the argument's dtype), "log_det" (of the map from the first
            rows to the output "rows"), or "number" (one a row); the last two are float32 for half types.
        constant: outputs that the numbers of the rows do not enter, by index: the log_det of a linear map.
        variants: options by name of the variant.
        extreme: tensors by name of the case whose results and gradients must be finite in float32.
        bad: inputs that must be refused, beyond those that are made from the arguments' names.
        half_cases: cases that half types are tested on (their range is small).
        like: the argument whose dtype and device the others must have, by default the first.
        any_dtype: arguments that may be integers.
        undo: (tensors, options, outputs) to the first argument again, through the inverse.
        small: cases for the tests that run each of them many times (tests/test_small_cases.py): every width or layout
            that has code of its own, with more rows than a warp, and an odd number of them.
        small_options: the options they are run with, by default those of the variants.
    """

    name: str
    function: Callable[..., tuple[Tensor, ...]]
    reference: Callable[..., tuple[Tensor, ...]]
    make: Callable[[Any, torch.Generator], dict[str, Tensor]]
    cases: Sequence[Any]
    rows: Sequence[str]
    outputs: Sequence[str] = ("rows", "log_det")
    constant: Sequence[int] = ()
    variants: dict[str, dict[str, Any]] = dataclasses.field(default_factory=lambda: {"default": {}})
    extreme: dict[str, Callable[[], dict[str, Tensor]]] = dataclasses.field(default_factory=dict)
    bad: dict[str, BadInput] = dataclasses.field(default_factory=dict)
    half_cases: Sequence[Any] | None = None
    like: str | None = None
    any_dtype: Sequence[str] = ()
    undo: Callable[[dict[str, Tensor], dict[str, Any], Sequence[Tensor]], Tensor] | None = None
    small: Sequence[Any] = ()
    small_options: Sequence[dict[str, Any]] | None = None

    @property
    def differentiable(self) -> bool:
        return "states" not in self.outputs

    @property
    def mapped(self) -> str:
        """The argument that is mapped to the first output: the first one made."""
        return next(iter(self.make(self.cases[0], torch.Generator())))

    def inverted(self, function: Callable[..., Any], reference: Callable[..., Any], argument: str) -> "OpSpec":
        """The spec of the inverse, a function of its own that calls the first argument another name.

        For a map that the forward undoes too; what must be refused is told with the new name for the old.
        """
        old = self.mapped
        rename = lambda tensors: {(argument if k == old else k): v for k, v in tensors.items()}  # noqa: E731
        back = lambda tensors: {(old if k == argument else k): v for k, v in tensors.items()}  # noqa: E731
        return dataclasses.replace(
            self, name=f"{self.name}_inverse", function=function, reference=reference,
            make=lambda case, generator: rename(self.make(case, generator)),
            rows=[argument if n == old else n for n in self.rows],
            extreme={k: lambda make=make: rename(make()) for k, make in self.extreme.items()},
            bad={
                k: BadInput(lambda t, b=b: rename(b.change(back(t))), b.error, re.sub(rf"\b{old}\b", argument, b.text))
                for k, b in self.bad.items()
            },
            undo=lambda t, options, out: self.function(**{**back(t), old: out[0]}, **options)[0],
        )  # fmt: skip

    def inputs(self, case: Any, dtype: torch.dtype, device: Any = "cpu", seed: int = 0) -> dict[str, Tensor]:
        made = self.make(case, torch.Generator().manual_seed(seed))
        return {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in made.items()}


class RecordOps(TorchDispatchMode):
    """Records the calls of genfast's ops with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "genfast":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def relative_error(got: Tensor, want: Tensor) -> float:
    """The largest deviation over the largest entry of `want`; infinite where NaN or shapes disagree."""
    if got.shape != want.shape:
        return math.inf
    if want.numel() == 0:
        return 0.0
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    if not torch.equal(got.isnan(), want.isnan()):
        return math.inf
    scale = want.abs().nan_to_num(0, 0, 0).max().item() or 1.0
    return float((got - want).abs().nan_to_num(0).max()) / scale


def with_gradients(tensors: dict[str, Tensor], only: Sequence[str] | None = None) -> dict[str, Tensor]:
    return {
        k: v.detach().clone().requires_grad_() if v.is_floating_point() and (only is None or k in only) else v
        for k, v in tensors.items()
    }


def cotangents_of(outputs: Sequence[Tensor], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(o.shape, generator=g, dtype=dtype).to(o.device) for o in outputs]


def needs_gradients(test):
    """Marks a test of derivatives, which a sampler has none of."""

    @functools.wraps(test)
    def run(self, *args, **kwargs):
        if not self.spec.differentiable:
            pytest.skip("draws states: no gradient")
        return test(self, *args, **kwargs)

    return run


def vjp(function, tensors, options, cotangents, only=None):
    """Outputs and gradients of all differentiable tensors, or of those named."""
    leaves = with_gradients(tensors, only)
    out = function(**leaves, **options)
    if not any(o.requires_grad for o in out):  # a sampler
        return list(out), {}
    names = [k for k, v in leaves.items() if v.requires_grad]
    grads = torch.autograd.grad(
        out,
        [leaves[k] for k in names],
        [c.to(o.device, o.dtype) for o, c in zip(out, cotangents, strict=True)],
        allow_unused=True,
    )
    zeros = [torch.zeros_like(leaves[k]) if g is None else g for k, g in zip(names, grads, strict=True)]
    return [o.detach() for o in out], dict(zip(names, zeros, strict=True))
