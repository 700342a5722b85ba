"""`genfast demo`: an RBM learns handwritten digits, once by the kernels and once in plain PyTorch."""

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from genfast import data
from genfast._optional import require
from genfast.boltzmann import RBM
from genfast.cli import files, pictures
from genfast.cli.distributed import choose_device
from genfast.cli.train import sample_rbm
from genfast.reference.rbm_training import contrastive_step

_HIDDEN, _BATCH, _SWEEPS, _LR, _MOMENTUM, _EPOCHS = 256, 128, 10, 0.05, 0.9, 60


class _Contender:
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


def _fused(rbm: RBM) -> _Contender:
    """The training of `genfast train rbm`: fused Gibbs chains, the gradient in closed form, torch's SGD."""
    optimizer = torch.optim.SGD(rbm.parameters(), lr=_LR, momentum=_MOMENTUM)

    def step(batch: Tensor) -> None:
        rbm.cd_backward(batch, _SWEEPS)
        optimizer.step()

    return _Contender("genfast", rbm, step, optimizer.state.clear)


def _plain(rbm: RBM) -> _Contender:
    """The same in plain PyTorch, with the gradient by hand."""
    parameters = rbm.W.detach(), rbm.vbias.detach(), rbm.hbias.detach()
    W, vbias, hbias = (torch.zeros_like(x) for x in parameters)

    def step(batch: Tensor) -> None:
        contrastive_step(batch, batch, parameters, (W, vbias, hbias), lr=_LR, momentum=_MOMENTUM, k=_SWEEPS)

    def forget() -> None:
        for velocity in (W, vbias, hbias):
            velocity.zero_()

    return _Contender("plain PyTorch", rbm, step, forget)


def demo(out: Path, *, device: str, seed: int) -> None:
    """Train both, in turn epoch by epoch, then draw and report."""
    require("matplotlib", "the pictures")
    tqdm = require("tqdm", "the progress bar")
    where = choose_device(device)
    files.make_folder(out)
    dataset = data.load("digits").binarized()
    v = dataset.x.to(where)
    contenders = [make(_machine(v, seed)) for make in (_fused, _plain)]
    print(
        f"A Restricted Boltzmann Machine with {v.shape[1]} visible and {_HIDDEN} hidden units learns {len(v):,} "
        "handwritten digits\nby contrastive divergence: "
        f"{_EPOCHS} passes, batches of {_BATCH}, {_SWEEPS} Gibbs sweeps an update, on {where}, "
        f"{torch.get_num_threads()} threads.",
        flush=True,
    )
    for contender in contenders:  # what first calls cost is no training
        _warm_up(contender, v[:_BATCH], seed)
        contender.look(v)
    order = torch.Generator().manual_seed(seed)
    with tqdm.tqdm(range(_EPOCHS), unit="epoch", disable=None, dynamic_ncols=True) as bar:
        for i in bar:
            rows = torch.randperm(len(v), generator=order).to(where)
            batches = list(v[rows].split(_BATCH))
            for contender in contenders if i % 2 == 0 else contenders[::-1]:
                contender.epoch(batches)
            if i % 3 == 2:
                for contender in contenders:
                    contender.look(v)
            bar.set_postfix_str(", ".join(f"{c.name} {c.seconds:.2f} s" for c in contenders))
    fused, plain = contenders
    _draw(out, fused, plain, dataset, seed)
    n_updates = _EPOCHS * -(-len(v) // _BATCH)
    print(_report(fused, plain, n_updates, out))


def _machine(v: Tensor, seed: int) -> RBM:
    torch.manual_seed(seed)
    rbm = RBM(v.shape[1], _HIDDEN, init_std=math.sqrt(2 / (v.shape[1] + _HIDDEN))).to(v.device)
    rbm.init_vbias(v)
    return rbm


def _warm_up(contender: _Contender, batch: Tensor, seed: int) -> None:
    before = {name: value.clone() for name, value in contender.rbm.state_dict().items()}
    for _ in range(3):
        contender.step(batch)
    contender.rbm.load_state_dict(before)
    contender.forget()
    torch.manual_seed(seed)


def _draw(out: Path, fused: _Contender, plain: _Contender, dataset: data.Dataset, seed: int) -> None:
    rbm = fused.rbm
    generator = torch.Generator(rbm.W.device).manual_seed(seed)
    _, shown = sample_rbm(rbm, 100, 2000, generator)
    pictures.demo(
        out / "demo.png",
        rbm,
        pictures.image_shape(rbm.n_visible, dataset.shape),
        digits=dataset.x,
        samples=shown,
        curves={c.name: c.curve for c in (fused, plain)},
    )


def _report(fused: _Contender, plain: _Contender, n_updates: int, out: Path) -> str:
    lines = ["", f"{'':15}{'seconds':>9}{'ms an update':>15}{'pseudo-log-likelihood':>24}"]
    lines += [
        f"{c.name:15}{c.seconds:9.2f}{1000 * c.seconds / n_updates:15.3f}{c.curve[-1][1]:24.2f}" for c in (fused, plain)
    ]
    gap = abs(fused.curve[-1][1] - plain.curve[-1][1])
    learned = f"from {fused.curve[0][1]:.1f} to {fused.curve[-1][1]:.1f}"
    ratio = statistics.median(p / f for p, f in zip(plain.epochs, fused.epochs, strict=True))
    faster = f"{ratio:.1f} times faster than" if ratio >= 1 else f"{1 / ratio:.1f} times slower than"
    result = (
        f"genfast trained it {faster} plain PyTorch (median over the passes), to the same likelihood "
        f"(they differ by {gap:.2f})."
    )
    lines += [
        "",
        f"The machine learned: the pseudo-log-likelihood of a digit rose {learned}.",
        result,
        f"See what it draws: {out / 'demo.png'}",
    ]
    return "\n".join(lines)
