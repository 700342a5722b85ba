"""The typer application: names, options and help of the commands."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from genfast.cli import entry
from genfast.cli.errors import guarded

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Classic generative models on fused kernels: train them, sample them, measure them.",
)


class BackendName(str, Enum):
    """Implementations of the ops."""

    native = "native"
    reference = "reference"


Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


@app.command()
def info() -> int:
    """Print versions, the instruction set in use, the CUDA build and the GPUs."""
    return entry.info()


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="rbm, planar, realnvp or nsf.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder for checkpoint, metrics and pictures.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="rbm: digits, mnist, fashion-mnist or a .npy file in [0, 1]. Flows: the densities u1 to u4, the "
            "samples moons, rings, pinwheel, checkerboard, or a .npy file."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    steps: Annotated[int | None, typer.Option(help="Updates, instead of --epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows an update, in each process.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate (SGD for rbm, Adam for flows).")] = None,
    hidden: Annotated[int | None, typer.Option(help="Hidden units: of the rbm, or of a flow's conditioners.")] = None,
    layers: Annotated[int | None, typer.Option(help="Layers of a flow.")] = None,
    k: Annotated[int | None, typer.Option(help="Gibbs sweeps an update (rbm).")] = None,
    method: Annotated[str | None, typer.Option(help="cd, or pcd: persistent chains (rbm).")] = None,
    momentum: Annotated[float | None, typer.Option(help="Of the descent (rbm); 0.9 for cd, 0 for pcd.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random; 0 by default.")] = None,
    device: Device = "auto",
    backend: Annotated[
        BackendName, typer.Option(help="reference runs the same in plain PyTorch.")
    ] = BackendName.native,
    threads: Annotated[int | None, typer.Option(help="CPU threads; torch's choice by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out, bit for bit.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints; about 30 seconds by default.")
    ] = None,
    log_every: Annotated[int | None, typer.Option(help="Steps between lines of metrics.jsonl.")] = None,
) -> int:
    """Train a model. Under `torchrun` the same command runs on several processes."""
    from genfast.cli import train as command

    given = {
        "data": data,
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "hidden": hidden,
        "layers": layers,
        "k": k,
        "method": method,
        "momentum": momentum,
        "seed": seed,
    }
    return guarded(command.train)(
        model,
        given,
        out=out,
        go_on=resume,
        overwrite=overwrite,
        device=device,
        backend=backend.value,
        threads=threads,
        checkpoint_every=checkpoint_every,
        log_every=log_every,
    )


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The --out folder of a training run.")],
    *,
    n: Annotated[int, typer.Option("--n", "-n", help="Number of samples.")] = 100,
    sweeps: Annotated[int, typer.Option(help="Gibbs sweeps of each chain (rbm).")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for samples.npy and samples.png; DIR by default.")] = None,
) -> int:
    """Draw samples from a trained model: samples.npy and samples.png."""
    from genfast.cli import train as command

    return guarded(command.sample)(folder, n=n, sweeps=sweeps, seed=seed, device=device, out=out)


@app.command()
def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("runs/demo"),
    device: Device = "cpu",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
) -> int:
    """Train an RBM on handwritten digits, by the kernels and in plain PyTorch; show samples and times."""
    from genfast.cli import demo as command

    return guarded(command.demo)(out, device=device, seed=seed)


@app.command()
def bench() -> int:
    """Run the benchmark suite: `genfast bench --help` lists its own options."""
    return entry.bench([])
