"""The plane: samples to draw, and the 2-D densities of the flow papers."""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

SAMPLES = ("moons", "rings", "pinwheel", "checkerboard")
DENSITIES = ("u1", "u2", "u3", "u4")


@dataclasses.dataclass(frozen=True)
class Density:
    r"""An unnormalised density exp(-U(z)) in the plane, from the figure of Rezende & Mohamed 2015.

    U2, U3 and U4 have no finite integral over the plane: they are restricted to |z1| <= 4 by a steep, differentiable
    wall, (max(0, |z1| - 4) / 0.1)^2 / 2, which `log_prob` adds to U and `energy` does not.

    Attributes:
        name: "u1" to "u4".
        energy: U, a function of z `[..., 2]`.
        walled: whether the wall stands.
    """

    name: str
    energy: Callable[[Tensor], Tensor]
    walled: bool

    def log_prob(self, z: Tensor) -> Tensor:
        """-U(z) minus the wall, not normalised: z `[..., 2]` to `[...]`."""
        if not self.walled:
            return -self.energy(z)
        return -self.energy(z) - 0.5 * (torch.relu(z[..., 0].abs() - 4) / 0.1) ** 2

    @functools.cached_property
    def log_normalizer(self) -> float:
        """The log of the integral of exp(log_prob), by the trapezoidal rule on [-8, 8]^2, in float64."""
        step = 0.01
        axis = torch.arange(-8, 8 + step / 2, step, dtype=torch.float64)
        rows = [
            torch.logsumexp(self.log_prob(torch.stack(torch.meshgrid(part, axis, indexing="ij"), -1)).flatten(), 0)
            for part in axis.split(100)
        ]
        return float(torch.logsumexp(torch.stack(rows), 0) + 2 * math.log(step))


def samples(name: str, n: int, rng: np.random.Generator) -> Tensor:
    if name == "moons":
        t = math.pi * rng.random(n)
        upper = rng.random(n) < 0.5
        x = np.stack([np.where(upper, np.cos(t), 1 - np.cos(t)), np.where(upper, np.sin(t), 0.5 - np.sin(t))], 1)
        x = (x - [0.5, 0.25]) * [1.15, 2.0] + 0.1 * rng.standard_normal((n, 2))
    elif name == "rings":
        radius = rng.choice([0.5, 1.1, 1.7], n) + 0.06 * rng.standard_normal(n)
        t = 2 * math.pi * rng.random(n)
        x = np.stack([radius * np.cos(t), radius * np.sin(t)], 1)
    elif name == "pinwheel":
        arm = rng.integers(5, size=n)
        along, across = 1.2 + 0.4 * rng.standard_normal(n), 0.13 * rng.standard_normal(n)
        turn = 2 * math.pi * arm / 5 + 0.6 * along
        x = np.stack([along * np.cos(turn) - across * np.sin(turn), along * np.sin(turn) + across * np.cos(turn)], 1)
    else:  # checkerboard of 4 x 4 squares, 8 of them filled
        column = rng.integers(4, size=n)
        row = 2 * rng.integers(2, size=n) + column % 2
        x = np.stack([column + rng.random(n), row + rng.random(n)], 1) - 2
    return torch.from_numpy(x.astype(np.float32))


def _w1(z: Tensor) -> Tensor:
    return torch.sin(2 * math.pi * z[..., 0] / 4)


def _well(t: Tensor, width: float) -> Tensor:
    return -0.5 * (t / width) ** 2


def _u1(z: Tensor) -> Tensor:
    radius = torch.linalg.vector_norm(z, dim=-1)
    return -_well(radius - 2, 0.4) - torch.logaddexp(_well(z[..., 0] - 2, 0.6), _well(z[..., 0] + 2, 0.6))


def _u2(z: Tensor) -> Tensor:
    return -_well(z[..., 1] - _w1(z), 0.4)


def _u3(z: Tensor) -> Tensor:
    w2 = 3 * torch.exp(_well(z[..., 0] - 1, 0.6))
    t = z[..., 1] - _w1(z)
    return -torch.logaddexp(_well(t, 0.35), _well(t + w2, 0.35))


def _u4(z: Tensor) -> Tensor:
    w3 = 3 * torch.sigmoid((z[..., 0] - 1) / 0.3)
    t = z[..., 1] - _w1(z)
    return -torch.logaddexp(_well(t, 0.4), _well(t + w3, 0.35))


_ENERGIES = {"u1": _u1, "u2": _u2, "u3": _u3, "u4": _u4}


@functools.cache
def density(name: str) -> Density:
    return Density(name, _ENERGIES[name], walled=name != "u1")
