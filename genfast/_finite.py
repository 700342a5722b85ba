"""The check that training has not left the numbers that it can work with."""

import math

import torch
from torch import nn

from genfast._errors import Told

_NAMED = 3


class DivergenceError(Told, FloatingPointError):
    """Training left its start for numbers that mean nothing; the message names the step and the number."""


class NonFiniteError(DivergenceError):
    """A loss or a parameter became NaN or infinite; the message names the step and the parameter."""


def parameter_norm(module: nn.Module) -> float:
    """The Euclidean norm of all parameters of `module` together; not finite where one of them is not (or past 1e19)."""
    parameters = [p.detach() for p in module.parameters()]
    return float(torch.nn.utils.get_total_norm(parameters)) if parameters else 0.0


def describe_nonfinite(module: nn.Module) -> str:
    """Name the parameters of `module` with NaN or infinite entries; "" where there is none."""
    faults = []
    for name, parameter in module.named_parameters():
        n_bad = int((~torch.isfinite(parameter.detach())).sum())
        if n_bad:
            faults.append(f"parameter {name} has {n_bad} non-finite values of {parameter.numel()}")
    more = [f"and {len(faults) - _NAMED} more parameters"] if len(faults) > _NAMED else []
    return "; ".join([*faults[:_NAMED], *more])


def check_finite(module: nn.Module, *, step: int | None = None, loss: float | None = None) -> None:
    """Raise where the loss or a parameter of `module` is NaN or infinite.

    One norm over all parameters and one synchronisation; only a fault is looked at closer.

    Args:
        module: its parameters are checked.
        step: the training step that the message names.
        loss: the value of the loss, where there is one to check.

    Raises:
        NonFiniteError: names the step, the loss and each faulty parameter.

    Example:
        >>> check_finite(torch.nn.Linear(2, 1), step=10, loss=0.5)
    """
    bad_loss = loss is not None and not math.isfinite(loss)
    fault = "" if math.isfinite(parameter_norm(module)) else describe_nonfinite(module)
    if not bad_loss and not fault:
        return
    where = "" if step is None else f"step {step}: "
    parts = [f"the loss is {loss}"] if bad_loss else []
    parts.append(fault or "all parameters are finite")
    raise NonFiniteError(where + "; ".join(parts) + " (a lower learning rate usually helps)")
