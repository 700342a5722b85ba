"""Deep Boltzmann machines: many layered Gibbs sweeps in one call."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genfast import _native
from genfast._backend import use_reference
from genfast._register import define, like
from genfast.ops import _checks as check
from genfast.ops._sampling import STATES, per_chain, seed_tensor
from genfast.ops.rbm import state_product
from genfast.reference import dbm as reference

MAX_LAYERS = 8  # kDbmLayers of dbm.h

# Products (chain, unit, unit of the next layer) of one call of the kernel: half a second of the slowest one. A longer
# call is cut into several, so that an interrupt is heard in between; the chain is the same, bit for bit.
_SLICE = 2**31

_NOT_BINARY = 2  # a bit of the kernel's status: see RbmStatus in rbm.h


# --- Gibbs sampling ---------------------------------------------------------------------------------------------------

# The kernel's arguments: layers lie beside each other in `states`, `biases` and `clamp`; bit l of `held` says that all
# of layer l stays as it is.


def _outputs(
    states: Tensor, W0: Tensor, W1: Tensor | None, W2: Tensor | None, W3: Tensor | None, W4: Tensor | None,
    W5: Tensor | None, W6: Tensor | None, biases: Tensor, beta: Tensor, clamp: Tensor | None, seed: Tensor,
    n_steps: int, first_chain: int, first_step: int, held: int,
) -> Tensor:  # fmt: skip
    return like(states)


def _gibbs(states: Tensor, *rest: Any) -> Tensor:
    weights, (biases, beta, clamp, seed, n_steps, first_chain, first_step, held) = rest[:7], rest[7:]
    given = states if states.dtype in STATES else states.to(torch.int64)
    n, products = states.shape[0], sum(W.numel() for W in weights if W is not None)
    block = n if n * n_steps * products <= _SLICE else min(n, max(64, _SLICE // products // 64 * 64))
    steps = n_steps if block == n and n * n_steps * products <= _SLICE else max(1, _SLICE // (block * products))
    parts = []
    for i in range(0, max(n, 1), max(block, 1)):
        part, rows = slice(i, i + block), given[i : i + block]
        beta_i = beta[part] if beta.shape[0] == n else beta
        clamp_i = clamp[part] if clamp is not None and clamp.dim() == 2 else clamp
        for j in range(0, n_steps, steps):
            rows = _slice(
                rows, weights, biases, beta_i, clamp_i, seed, min(steps, n_steps - j), first_chain + i,
                first_step + j, held,
            )  # fmt: skip
        parts.append(rows)
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out if given is states else out.to(states.dtype)


def _slice(
    states: Tensor, weights: Sequence[Tensor | None], biases: Tensor, beta: Tensor, clamp: Tensor | None, seed: Tensor,
    n_steps: int, first_chain: int, first_step: int, held: int,
) -> Tensor:  # fmt: skip
    out = like(states)
    # A GPU's status lies in memory, and looking at it waits; so it is looked at only where NaN cannot tell.
    wait = states.is_cuda and not states.is_floating_point()
    status = seed.new_empty(1, dtype=torch.int32) if wait else None
    returned: int | None = _native.dbm_gibbs(
        states, *weights, biases, beta, clamp, seed, n_steps, first_chain & 0xFFFFFFFF, first_step & 0xFFFFFFFF, held,
        out, status,
    )  # fmt: skip
    if status is not None:
        returned = int(status)
    if returned:
        if returned & _NOT_BINARY:
            raise ValueError("states: expected 0 or 1, got other values")
        if not states.is_floating_point():
            raise ValueError(
                f"weights, biases, beta: expected finite values, because {states.dtype} states cannot express NaN; "
                "got NaN or infinity"
            )
    return out


_gibbs_op = define("dbm_gibbs", _outputs, launch=_gibbs, autocast=False)


def _sequence(name: str, x: Any, of: str) -> list[Any]:
    if isinstance(x, Tensor) or not isinstance(x, Sequence):
        raise TypeError(f"{name}: got {type(x).__name__}, want a list of {of}")
    return list(x)


def machine(weights: Any, biases: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Checks the parameters of a machine."""
    weights, biases = _sequence("weights", weights, "tensors"), _sequence("biases", biases, "tensors")
    if not 1 <= len(weights) < MAX_LAYERS:
        raise ValueError(
            f"weights: got {len(weights)} matrices, want 1 to {MAX_LAYERS - 1}: one between each layer and the next"
        )
    if len(biases) != len(weights) + 1:
        raise ValueError(f"biases: got {len(biases)} vectors, want {len(weights) + 1}: one more than weights")
    first = weights[0]
    check.floating("weights[0]", first)
    parameters = {f"weights[{i}]": W for i, W in enumerate(weights)} | {f"biases[{i}]": b for i, b in enumerate(biases)}
    check.same_dtype_and_device(first, "weights[0]", **parameters)
    for i, W in enumerate(weights):
        below = weights[i - 1].shape[1] if i else None
        meaning = "[n_0, n_1]" if i == 0 else f"[n_{i}, n_{i + 1}] with n_{i} = {below} of weights[{i - 1}]"
        check.shape(f"weights[{i}]", W, (below, None), meaning)
        if W.numel() == 0:
            raise ValueError(f"weights[{i}]: got shape {list(W.shape)}, want at least one unit in every layer")
    for i, b in enumerate(biases):
        units = weights[i].shape[0] if i < len(weights) else weights[-1].shape[1]
        check.shape(f"biases[{i}]", b, (units,), f"[{units}], the units of layer {i}")
    return weights, biases


def _states(states: Any, weights: list[Tensor]) -> tuple[list[Tensor], torch.Size]:
    """Checks the states of all layers; they as rows, and their leading dimensions."""
    states = _sequence("states", states, "tensors")
    if len(states) != len(weights) + 1:
        raise ValueError(f"states: got {len(states)} layers, want {len(weights) + 1}: one more than weights")
    out = []
    for i, x in enumerate(states):
        name = f"states[{i}]"
        check.tensor(name, x)
        if x.device != weights[0].device:
            raise ValueError(f"{name}: got a tensor on {x.device}, want {weights[0].device} like weights[0]")
        if x.is_complex() or x.dtype != states[0].dtype:
            want = "states in a real, integer or bool dtype" if x.is_complex() else f"{states[0].dtype} like states[0]"
            raise TypeError(f"{name}: got {x.dtype}, want {want}")
        units = weights[i].shape[0] if i < len(weights) else weights[-1].shape[1]
        if x.dim() == 0 or x.shape[-1] != units or x.shape[:-1] != states[0].shape[:-1]:
            batch = "" if x.dim() == 0 or i == 0 else " and leading dimensions as states[0]"
            raise ValueError(f"{name}: got shape {list(x.shape)}, want [..., {units}], the units of layer {i}{batch}")
        out.append(check.rows(name, x)[0])
    return out, states[0].shape[:-1]


def _clamps(clamp: Any, states: list[Tensor], batch: torch.Size) -> tuple[list[Tensor | bool | None], int]:
    """Checks the masks of all layers; they as None, True, `[n_l]` or rows, and the bits of the layers that are held."""
    clamp = _sequence("clamp", clamp, "masks, one for each layer")
    if len(clamp) != len(states):
        raise ValueError(f"clamp: got {len(clamp)} masks, want {len(states)}, one (or None, or True) for each layer")
    masks: list[Tensor | bool | None] = []
    held = 0
    for i, (mask, x) in enumerate(zip(clamp, states, strict=True)):
        if mask is None or mask is False:
            masks.append(None)
        elif mask is True:
            masks.append(True)
            held |= 1 << i
        else:
            name = f"clamp[{i}]"
            check.tensor(name, mask)
            if mask.dtype != torch.bool:
                raise TypeError(f"{name}: got {mask.dtype}, want a torch.bool mask, None or True")
            if mask.device != x.device:
                raise ValueError(f"{name}: got a tensor on {mask.device}, want {x.device} like states[{i}]")
            if mask.shape not in (x.shape[-1:], batch + x.shape[-1:]):
                raise ValueError(
                    f"{name}: got shape {list(mask.shape)}, want {list(x.shape[-1:])}, the units of layer {i}, or "
                    f"{list(batch + x.shape[-1:])} like states[{i}]"
                )
            masks.append(mask if mask.dim() == 1 else mask.reshape(x.shape))
    return masks, held


def _flat_mask(masks: list[Tensor | bool | None], states: list[Tensor]) -> Tensor | None:
    """The masks beside each other, `[units]` or rows; None where no single unit is clamped."""
    if not any(isinstance(m, Tensor) for m in masks):
        return None
    rows = any(isinstance(m, Tensor) and m.dim() == 2 for m in masks)
    parts = []
    for mask, x in zip(masks, states, strict=True):
        m = mask if isinstance(mask, Tensor) else x.new_full(x.shape[-1:], mask is True, dtype=torch.bool)
        parts.append(m.expand(x.shape) if rows else m)
    return torch.cat(parts, -1)


def dbm_gibbs(
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    n_steps: int = 1,
    beta: float | Tensor = 1.0,
    clamp: Sequence[Tensor | bool | None] | None = None,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    first_chain: int = 0,
    first_step: int = 0,
) -> list[Tensor]:
    r"""Run sweeps of block Gibbs sampling in a deep Boltzmann machine.

    The energy of the layers x_0 (visible), x_1, ..., x_L is :math:`E(x) = -\sum_l b_l \cdot x_l - \sum_l x_l^T W_l
    x_{i+1}`, so a layer given its neighbours is drawn from :math:`p(x_l = 1) = \sigma(\beta (b_l + x_{i-1} W_{i-1} +
    W_l x_{i+1}))`. One sweep draws all odd layers given the even ones, then all even layers given these. All sweeps run
    in one call, and nothing is computed for layers that are no neighbours.

    **The same seed gives the same chain, bit for bit, on every backend and device**, as `rbm_gibbs` says: all weights
    and biases are rounded once, to multiples of one power of two for the whole machine, and the fields are exact.
    `genfast.reference.dbm` states the definition. Rows `k:` of a batch are the chains from `first_chain=k`, and n steps
    are m steps followed by n - m steps from `first_step=m`, with the same seed.

    The op is a function of its arguments and has no gradient. Under `torch.vmap` each entry of the batch is one call.

    Args:
        states: states of the layers from the visible one up, `[..., n_l]` each, 0 or 1 in any one dtype.
        weights: `W_l [n_l, n_{i+1}]`, 1 to 7 of them; float32 or float64 (half types are raised to float32).
        biases: `b_l [n_l]`, one more.
        n_steps: number of sweeps, at least 1.
        beta: inverse temperature: a number, or one for each chain `[...]`.
        clamp: for each layer None, True (the whole layer stays as it is, and costs nothing), or a bool mask `[n_l]` or
            `[..., n_l]` of the units that stay as they are. `[True, None, None]` samples the hidden layers given v.
        generator: torch generator from which the seed is drawn; the default one if not given.
        seed: an int or an int64 tensor of one element on the device of the states. Drawn anew if not given.
        first_chain: number of the first row, for its random numbers.
        first_step: number of the first sweep, for its random numbers.

    Returns:
        The states of all layers after the last sweep, in their dtype. Where weights or biases hold NaN or infinity,
        floating states are NaN; so are the states of a chain whose `beta` does, or, on a GPU (where looking would
        wait), whose states are others than 0 and 1.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape or device does not fit, n_steps < 1; states are others than 0 and 1; or they are integers or
            bools, and would have to be NaN. For these dtypes a call on a GPU waits for the result.

    Source:
        Salakhutdinov and Hinton, "Deep Boltzmann machines", 2009.

    Example:
        >>> weights = [torch.randn(784, 500) * 0.05, torch.randn(500, 1000) * 0.05]
        >>> biases = [torch.zeros(n) for n in (784, 500, 1000)]
        >>> states = [torch.zeros(100, n) for n in (784, 500, 1000)]
        >>> v, h1, h2 = genfast.ops.dbm_gibbs(states, weights, biases, n_steps=5, seed=1)
        >>> v.shape, h2.shape
        (torch.Size([100, 784]), torch.Size([100, 1000]))
    """
    weights, biases = machine(weights, biases)
    rows, batch = _states(states, weights)
    for name, number, least in (
        ("n_steps", n_steps, 1), ("first_chain", first_chain, 0), ("first_step", first_step, 0),
    ):  # fmt: skip
        if number < least:
            raise ValueError(f"{name}: got {number}, want at least {least}")
    masks, held = _clamps([None] * len(rows) if clamp is None else clamp, rows, batch)
    betas, key = per_chain("beta", beta, states[0], batch), seed_tensor(seed, generator, states[0])
    if use_reference(rows[0]):
        out = reference.dbm_gibbs(
            [x.detach() for x in rows], [W.detach() for W in weights], [b.detach() for b in biases], seed=key,
            n_steps=n_steps, beta=betas, clamp=masks, first_chain=first_chain, first_step=first_step,
        )  # fmt: skip
    else:
        flat = flat_gibbs(
            torch.cat(rows, 1).detach(), weights, biases, key, n_steps=n_steps, beta=betas,
            clamp=_flat_mask(masks, rows), held=held, first_chain=first_chain, first_step=first_step,
        )  # fmt: skip
        out = [x.contiguous() for x in flat.split([b.shape[0] for b in biases], 1)]
    return out if len(batch) == 1 else [x.reshape(*batch, x.shape[1]) for x in out]


def flat_gibbs(
    states: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], seed: Tensor, *, n_steps: int, beta: Tensor,
    clamp: Tensor | None = None, held: int = 0, first_chain: int = 0, first_step: int = 0,
) -> Tensor:  # fmt: skip
    """`dbm_gibbs` of layers that lie beside each other in rows `[N, units]`, by the kernel, without its checks."""
    matrices: list[Tensor | None] = [W.detach() for W in weights]
    all_biases = torch.cat([b.detach() for b in biases])
    if all_biases.dtype not in (torch.float32, torch.float64):
        matrices, all_biases = [None if W is None else W.float() for W in matrices], all_biases.float()
    matrices += [None] * (MAX_LAYERS - 1 - len(matrices))
    out: Tensor = _gibbs_op(
        states, *matrices, all_biases, beta, clamp, seed, n_steps, first_chain, first_step, held
    )  # fmt: skip
    return out


# --- the mean-field fixed point ---------------------------------------------------------------------------------------


def dbm_mean_field(
    v: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    max_iterations: int = 50,
    tolerance: float = 1e-4,
    start: Sequence[Tensor] | None = None,
) -> tuple[list[Tensor], Tensor]:
    r"""Mean-field inference in a deep Boltzmann machine: the best factorised posterior of the hidden layers.

    The means of q(h | v), a product over units, fulfil :math:`\mu_l = \sigma(b_l + \mu_{l-1} W_{l-1} + W_l \mu_{l+1})`
    with :math:`\mu_0 = v`. One iteration sets all odd hidden layers, given the even ones, and then all even ones. Each
    half is the exact maximum of the variational bound in these layers, so that the bound never falls. A row is done
    when no mean of it has changed by more than `tolerance` in an iteration, and costs nothing from then on.

    Of the means, what has changed by more than a tenth of `tolerance` is passed on to the neighbours; the rest waits
    until it has added up to that. So the work is that of the means that still move, and the bound never falls but by
    what waits.
    With a tolerance of 0 nothing waits, and every row takes `max_iterations`, unless nothing changes.

    No derivative is known: asking for one raises RuntimeError. None is needed for training, because the bound is
    stationary in the means: its gradient in the parameters is that with the means held.

    Args:
        v: `[..., n_visible]`, 0/1 or probabilities in between.
        weights: `W_l [n_l, n_{l+1}]`, 1 to 7 of them; float32 or float64 (half types are raised to float32).
        biases: `b_l [n_l]`, one more.
        max_iterations: most iterations of a row, at least 1.
        tolerance: at least 0.
        start: means `[..., n_l]` of the hidden layers to start from. By default those of one pass up, in which every
            layer but the last counts its input from below twice, in place of the one from above.

    Returns:
        means: of the hidden layers, `[..., n_l]` each, in the dtype of the weights (float32 for half types).
        n_iterations: of each row, int64 `[...]`; `max_iterations` for those that have not come to rest.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape or device does not fit, or a number is out of range.

    Source:
        Salakhutdinov and Hinton, "Deep Boltzmann machines", 2009.

    Example:
        >>> weights = [torch.randn(784, 500) * 0.05, torch.randn(500, 1000) * 0.05]
        >>> biases = [torch.zeros(n) for n in (784, 500, 1000)]
        >>> means, n_iterations = genfast.ops.dbm_mean_field(torch.zeros(100, 784), weights, biases)
        >>> [m.shape for m in means], n_iterations.shape
        ([torch.Size([100, 500]), torch.Size([100, 1000])], torch.Size([100]))
    """
    weights, biases = machine(weights, biases)
    check.tensor("v", v)
    dtype = weights[0].dtype if weights[0].dtype in (torch.float32, torch.float64) else torch.float32
    if v.device != weights[0].device:
        raise ValueError(f"v: got a tensor on {v.device}, want {weights[0].device} like weights[0]")
    if v.is_complex():
        raise TypeError(f"v: got {v.dtype}, want a real, integer or bool dtype")
    if v.dim() == 0 or v.shape[-1] != weights[0].shape[0]:
        raise ValueError(f"v: got shape {list(v.shape)}, want [..., {weights[0].shape[0]}], the units of layer 0")
    if max_iterations < 1:
        raise ValueError(f"max_iterations: got {max_iterations}, want at least 1")
    if not tolerance >= 0:
        raise ValueError(f"tolerance: got {tolerance}, want at least 0")
    rows, batch = check.rows("v", v)
    if start is not None:
        start = _sequence("start", start, "tensors")
        for i, (m, W) in enumerate(zip(start, weights, strict=False)):
            check.tensor(f"start[{i}]", m)
            if m.shape != (*batch, W.shape[1]) or m.device != v.device:
                raise ValueError(
                    f"start[{i}]: got shape {list(m.shape)} on {m.device}, want {[*batch, W.shape[1]]} on {v.device}"
                )
        if len(start) != len(weights):
            raise ValueError(f"start: got {len(start)} layers, want {len(weights)}: one for each hidden layer")
        start = [m.detach().reshape(-1, m.shape[-1]).to(dtype) for m in start]
    given = [v, *weights, *biases]
    weights, biases = ([p.detach().to(dtype) for p in ps] for ps in (weights, biases))
    settle = reference.dbm_mean_field if use_reference(v) else _mean_field
    means, iterations = settle(
        rows.detach().to(dtype), weights, biases, max_iterations=max_iterations, tolerance=tolerance, start=start
    )
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        means = [_NoDerivative.apply(m, *given) for m in means]
    return [m.reshape(*batch, m.shape[1]) for m in means], iterations.reshape(batch)


# Below this share of means that move, adding what they change takes less time than a dense product (measured).
_MOVING = 0.35


def _mean_field(
    v: Tensor, weights: list[Tensor], biases: list[Tensor], *, max_iterations: int, tolerance: float,
    start: list[Tensor] | None,
) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    """`dbm_mean_field` by dense products, and by the kernel once most means are at rest."""
    means = reference.start_means(v, weights, biases) if start is None else start
    first = state_product(v, weights[0], init=biases[1])
    if len(weights) == 1:  # an RBM: there is nothing to iterate
        return [torch.sigmoid(first)], v.new_ones(len(v), dtype=torch.int64)
    out, iterations = [torch.empty_like(m) for m in means], v.new_zeros(len(v), dtype=torch.int64)
    rows = torch.arange(len(v), device=v.device)

    def field(i: int) -> Tensor:
        """Of hidden layer i, from 0."""
        x = first if i == 0 else torch.addmm(biases[i + 1], means[i - 1], weights[i])
        return x if i + 1 == len(means) else torch.addmm(x, means[i + 1], weights[i + 1].t())

    for iteration in range(1, max_iterations + 1):
        before, fields = list(means), [first] * len(means)
        for i in (*range(0, len(means), 2), *range(1, len(means), 2)):
            fields[i] = field(i)
            means[i] = torch.sigmoid(fields[i])
        if tolerance == 0:
            continue
        moved = torch.cat([torch.sub(m, b).abs_() for m, b in zip(means, before, strict=True)], 1)
        done = moved.amax(1) <= tolerance
        if iteration < max_iterations and bool(done.any()):
            ready, rest = rows[done], ~done
            for o, m in zip(out, means, strict=True):
                o[ready] = m[done]
            iterations[ready] = iteration
            if len(ready) == len(rows):
                return out, iterations
            rows, first, moved = rows[rest], first[rest], moved[rest]
            means, fields = [m[rest] for m in means], [x[rest] for x in fields]
        if iteration < max_iterations and float((moved > 0.1 * tolerance).count_nonzero()) < _MOVING * moved.numel():
            fields[::2] = [field(i) for i in range(0, len(means), 2)]
            flat, more = _mean_field_op(
                torch.cat(means, 1), torch.cat(fields, 1), *weights[1:], *[None] * (MAX_LAYERS - 1 - len(weights)),
                max_iterations - iteration, tolerance,
            )  # fmt: skip
            means = list(flat.split([m.shape[1] for m in means], 1))
            iterations[rows] = iteration + more
            break
    else:
        iterations[rows] = max_iterations
    if len(rows) == len(v):
        return means, iterations
    for o, m in zip(out, means, strict=True):
        o[rows] = m
    return out, iterations


def _settled(
    means: Tensor, fields: Tensor, U1: Tensor | None, U2: Tensor | None, U3: Tensor | None, U4: Tensor | None,
    U5: Tensor | None, U6: Tensor | None, max_iterations: int, tolerance: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return like(means), means.new_empty(means.shape[:1], dtype=torch.int64)


def _settle(means: Tensor, fields: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    out, iterations = _settled(means, fields, *rest)
    out.copy_(means)
    _native.dbm_mean_field(*rest, fields.clone(), out, iterations)
    return out, iterations


_mean_field_op = define("dbm_mean_field", _settled, launch=_settle)


class _NoDerivative(torch.autograd.Function):
    """The first argument, of which no derivative in the others is taken: asking for one raises."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, *parameters: Tensor) -> Tensor:  # noqa: ARG004
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ARG004
        raise RuntimeError(
            "dbm_mean_field: no derivative of the fixed point is known; call it under torch.no_grad(), or detach the "
            "means"
        )

    jvp = backward
