"""What `genfast demo` runs: an RBM learns handwritten digits, once by the kernels and once in plain PyTorch."""

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from genfast import data
from genfast.boltzmann import RBM
from genfast.recipes import _pictures
from genfast.reference.rbm_training import contrastive_step
from genfast.training import files
from genfast.training.distributed import choose_device

HIDDEN, BATCH, SWEEPS, EPOCHS = 256, 128, 10, 60
_LR, _MOMENTUM = 0.05, 0.9
PICTURE = "demo.png"


class Contender:
    """A way to train: its step, the machine that it trains, its time and its learning curve."""

    def __init__(self, name: str, rbm: RBM, step: Callable[[Tensor], None], forget: Callable[[], None]) -> None:
        self.name = name
        self.rbm = rbm
        self.step = step
        self.forget = forget  # the momentum
        self.seconds = 0.0
        self.epochs: list[float] = []
        self.curve: list[tuple[float, float]] = []

    def epoch(self, batches: list[Tensor]) -> None:
        """Train on the batches, on the clock."""
        _wait(batches[0])
        started = time.perf_counter()
        for batch in batches:
            self.step(batch)
        _wait(batches[0])
        self.epochs.append(time.perf_counter() - started)
        self.seconds += self.epochs[-1]

    def look(self, v: Tensor) -> None:
        """Note the pseudo-likelihood, off the clock."""
        self.curve.append((self.seconds, float(self.rbm.pseudo_likelihood(v, exact=True).mean())))


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def _fused(rbm: RBM) -> Contender:
    """The training of `genfast train rbm`: fused Gibbs chains, the gradient in closed form, torch's SGD."""
    optimizer = torch.optim.SGD(rbm.parameters(), lr=_LR, momentum=_MOMENTUM)

    def step(batch: Tensor) -> None:
        rbm.cd_backward(batch, SWEEPS)
        optimizer.step()

    return Contender("genfast", rbm, step, optimizer.state.clear)


def _plain(rbm: RBM) -> Contender:
    """The same in plain PyTorch, with the gradient by hand."""
    parameters = rbm.W.detach(), rbm.vbias.detach(), rbm.hbias.detach()
    W, vbias, hbias = (torch.zeros_like(x) for x in parameters)

    def step(batch: Tensor) -> None:
        contrastive_step(batch, batch, parameters, (W, vbias, hbias), lr=_LR, momentum=_MOMENTUM, k=SWEEPS)

    def forget() -> None:
        for velocity in (W, vbias, hbias):
            velocity.zero_()

    return Contender("plain PyTorch", rbm, step, forget)


class Race:
    """Both contenders on the same digits, from the same start, in turn epoch by epoch.

    Args:
        device: as `genfast.fit` takes it.
        seed: of everything random.
    """

    def __init__(self, *, device: str, seed: int) -> None:
        self.seed = seed
        self.device = choose_device(device)
        self.dataset = data.load("digits").binarized()
        self.v = self.dataset.x.to(self.device)
        self.fused, self.plain = _fused(self._machine()), _plain(self._machine())
        for contender in (self.fused, self.plain):  # what first calls cost is no training
            self._warm_up(contender)
            contender.look(self.v)
        self._order = torch.Generator().manual_seed(seed)
        self._passes = 0

    def epoch(self) -> None:
        """One pass over the data for each; who goes first alternates."""
        rows = torch.randperm(len(self.v), generator=self._order).to(self.device)
        batches = list(self.v[rows].split(BATCH))
        both = (self.fused, self.plain)
        for contender in both if self._passes % 2 == 0 else both[::-1]:
            contender.epoch(batches)
        self._passes += 1
        if self._passes % 3 == 0:
            for contender in both:
                contender.look(self.v)

    @property
    def n_updates(self) -> int:
        """Updates that each has made."""
        return self._passes * -(-len(self.v) // BATCH)

    @property
    def ratio(self) -> float:
        """How many times faster the kernels are: the median over the passes."""
        return statistics.median(p / f for p, f in zip(self.plain.epochs, self.fused.epochs, strict=True))

    @torch.no_grad()
    def draw(self, folder: Path) -> Path:
        """Write the picture: data, samples, filters, and pseudo-likelihood against time for each."""
        rbm = self.fused.rbm
        generator = torch.Generator(self.device).manual_seed(self.seed)
        _, h = rbm.gibbs(rbm.sample(100, 1, generator=generator), 2000, generator=generator)
        shape = _pictures.image_shape(rbm.n_visible, self.dataset.shape)
        drawn = _pictures.figure(13.6, 3.3)
        axes = drawn.subplots(1, 4, width_ratios=[1, 1, 1, 1.15])
        _pictures.draw_images(axes[0], "handwritten digits", self.dataset.x[:100], shape, 10)
        _pictures.draw_images(axes[1], "drawn by the machine", rbm.visible_probs(h), shape, 10)
        _pictures.draw_filters(axes[2], rbm.W, shape)
        for contender in (self.fused, self.plain):
            axes[3].plot(*zip(*contender.curve, strict=True), label=contender.name)
        axes[3].set_xlabel("seconds of training")
        axes[3].set_ylabel("pseudo-log-likelihood")
        axes[3].grid(alpha=0.3)
        axes[3].legend()
        files.make_folder(folder)
        files.write_atomically(folder / PICTURE, _pictures.png(drawn))
        return folder / PICTURE

    def _machine(self) -> RBM:
        torch.manual_seed(self.seed)
        n_visible = self.v.shape[1]
        rbm = RBM(n_visible, HIDDEN, init_std=math.sqrt(2 / (n_visible + HIDDEN))).to(self.device)
        rbm.init_vbias(self.v)
        return rbm

    def _warm_up(self, contender: Contender) -> None:
        before = {name: value.clone() for name, value in contender.rbm.state_dict().items()}
        for _ in range(3):
            contender.step(self.v[:BATCH])
        contender.rbm.load_state_dict(before)
        contender.forget()
        torch.manual_seed(self.seed)
