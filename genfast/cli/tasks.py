"""What is trained: the model, its objective and its data, built from a config."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from genfast import data
from genfast.boltzmann import RBM
from genfast.cli.config import Config
from genfast.cli.errors import CommandError
from genfast.flows import AffineCoupling, Flow, Planar, SplineCoupling, StandardNormal, half_mask


class RBMObjective(nn.Module):
    """The CD-k or PCD-k loss of an RBM on a batch."""

    def __init__(self, rbm: RBM, *, method: str, k: int) -> None:
        super().__init__()
        self.model = rbm
        self.k = k
        self.method = method

    def backward(self, batch: Tensor) -> Tensor:
        """Put the gradient of the loss on the parameters, without a graph; returns the model's states."""
        if self.method == "pcd":
            return self.model.pcd_backward(batch, self.k)
        return self.model.cd_backward(batch, self.k)

    def forward(self, batch: Tensor) -> Tensor:
        """Data `[N, n_visible]` to the loss."""
        if self.method == "pcd":
            return self.model.pcd_loss(batch, self.k)
        return self.model.cd_loss(batch, self.k)


class LikelihoodObjective(nn.Module):
    """-mean log p of a batch under a flow."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.model = flow

    def forward(self, batch: Tensor) -> Tensor:
        """Data `[N, D]` to the loss."""
        return self.model.forward_kl(batch)


class ReverseKLObjective(nn.Module):
    """The reverse KL divergence of a flow to a density, over as many samples as a batch has rows."""

    def __init__(self, flow: Flow, density: data.Density) -> None:
        super().__init__()
        self.model = flow
        self.base = StandardNormal(2)
        self.density = density
        self.log_z = density.log_normalizer

    def forward(self, batch: Tensor) -> Tensor:
        """Noise `[N, 2]` to the divergence."""
        x, log_det = self.model(batch)
        log_q = self.base.log_prob(batch) - log_det
        loss: Tensor = (log_q - self.density.log_prob(x)).mean() + self.log_z
        return loss


Objective = RBMObjective | LikelihoodObjective | ReverseKLObjective


@dataclasses.dataclass
class Task:
    """A model with its objective, its data (None for a density) and the optimiser that suits it."""

    config: Config
    dim: int
    objective: Objective
    dataset: data.Dataset | None
    density: data.Density | None
    loss_name: str

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD for Boltzmann machines, Adam for flows."""
        parameters = self.objective.parameters()
        if self.config.model == "rbm":
            return torch.optim.SGD(parameters, lr=self.config.lr, momentum=self.config.momentum)
        return torch.optim.Adam(parameters, lr=self.config.lr)


def build(config: Config) -> Task:
    """Build the task of a config; the initial parameters come from torch's default generator.

    Raises:
        CommandError: the model cannot learn this data.
    """
    source = load_data(config.data)
    if config.model == "rbm":
        if isinstance(source, data.Density) or source.name in data.SAMPLES:
            raise CommandError(f"an RBM learns binary images, not {config.data}; take digits, mnist or a file")
        return _rbm_task(config, source)
    if isinstance(source, data.Dataset) and source.name in data.IMAGES:
        choices = ", ".join(data.SAMPLES + data.DENSITIES)
        raise CommandError(f"{config.model} trains on the plane, not on {config.data}; take one of {choices} or a file")
    dim = 2 if isinstance(source, data.Density) else source.x.shape[1]
    if dim < 2 and config.model != "planar":
        raise CommandError(f"{config.model} splits its dimensions; {config.data} has {dim}, want at least 2")
    flow = _flow(config, dim)
    if isinstance(source, data.Density):
        return Task(config, dim, ReverseKLObjective(flow, source), None, source, "reverse KL")
    return Task(config, dim, LikelihoodObjective(flow), source, None, "-log p")


def build_model(config: Config, dim: int) -> RBM | Flow:
    """The model of a config over `dim` dimensions, untrained."""
    return RBM(dim, config.hidden) if config.model == "rbm" else _flow(config, dim)


def _rbm_task(config: Config, source: data.Dataset) -> Task:
    if not bool(((source.x >= 0) & (source.x <= 1)).all()):
        low, high = source.x.min().item(), source.x.max().item()
        raise CommandError(f"{config.data} has values from {low:g} to {high:g}; an RBM wants them in [0, 1]")
    dataset = source.binarized()
    dim = dataset.x.shape[1]
    rbm = RBM(dim, config.hidden, init_std=math.sqrt(2 / (dim + config.hidden)))
    rbm.nonfinite_check = False  # the training loop checks, and names the step
    rbm.init_vbias(dataset.x)
    return Task(config, dim, RBMObjective(rbm, method=config.method, k=config.k), dataset, None, "contrastive loss")


def _flow(config: Config, dim: int) -> Flow:
    hidden = (config.hidden, config.hidden)
    layers: list[nn.Module]
    if config.model == "planar":
        layers = [Planar(dim, config.layers)]
    elif config.model == "realnvp":
        layers = [AffineCoupling(half_mask(dim, last=i % 2 == 0), hidden=hidden) for i in range(config.layers)]
    else:
        layers = [
            SplineCoupling(half_mask(dim, last=i % 2 == 0), hidden=hidden, bound=5.0) for i in range(config.layers)
        ]
    return Flow(StandardNormal(dim), layers)


def load_data(name: str) -> data.Dataset | data.Density:
    """A data set by name, or the rows of a .npy file.

    Raises:
        CommandError: no such name or file, or its contents are not finite numbers `[N, D]` or `[N, H, W]`.
    """
    if name in data.NAMES:
        return data.load(name)
    if not name.endswith(".npy"):
        raise CommandError(f"unknown data {name!r}; there are {', '.join(data.NAMES)}, or give a .npy file")
    path = Path(name)
    if not path.is_file():
        raise CommandError(f"there is no file {path}")
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CommandError(f"cannot read {path} as a .npy array: {str(error).splitlines()[0]}") from error
    if array.dtype.kind not in "biuf":
        raise CommandError(f"{path} holds {array.dtype}, want numbers")
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise CommandError(f"{path} has shape {list(array.shape)}, want [N, D] or [N, height, width] with N > 0")
    x = torch.from_numpy(array.astype(np.float32)).flatten(1)
    bad = ~torch.isfinite(x)
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        raise CommandError(
            f"{path} has {int(bad.sum())} values that are NaN or infinite, the first in row {row}, column {column}"
        )
    shape = (array.shape[1], array.shape[2]) if array.ndim == 3 else None
    return data.Dataset(name, x, shape=shape)
