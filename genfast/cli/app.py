"""The typer application: names, options and help of the commands."""

from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from genfast import recipes
from genfast.cli import narrow
from genfast.cli.bench import bench as run_bench
from genfast.cli.errors import guarded
from genfast.cli.info import info as print_info
from genfast.cli.options import command, parameter


class BackendName(str, Enum):
    """Implementations of the ops."""

    native = "native"
    reference = "reference"


Out = Annotated[Path, typer.Option(help="Folder for checkpoint, metrics and pictures.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Backend = Annotated[BackendName, typer.Option(help="reference runs the same in plain PyTorch.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; torch's choice by default.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out, bit for bit.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")]
CheckpointEvery = Annotated[int | None, typer.Option(help="Steps between checkpoints; about 30 seconds by default.")]
Snapshots = Annotated[
    int | None, typer.Option(help="Models to keep in --out/snapshots for each doubling of the steps; none by default.")
]
LogEvery = Annotated[int | None, typer.Option(help="Steps between lines of metrics.jsonl.")]

Run = Annotated[Path, typer.Argument(metavar="DIR", help="The --out folder of a training run.")]
Count = Annotated[int, typer.Option("--n", "-n", help="Number of samples.")]
SampleSeed = Annotated[int, typer.Option(help="Of the samples.")]
SampleOut = Annotated[Path | None, typer.Option(help="Folder for samples.npy and samples.png; DIR/samples by default.")]

_TRAIN = (
    parameter("out", Out),
    parameter("device", Device, "auto"),
    parameter("backend", Backend, BackendName.native),
    parameter("threads", Threads, None),
    parameter("resume", Resume, False),
    parameter("overwrite", Overwrite, False),
    parameter("checkpoint_every", CheckpointEvery, None),
    parameter("snapshots", Snapshots, None),
    parameter("log_every", LogEvery, None),
)
_SAMPLE = (
    parameter("folder", Run),
    parameter("n", Count, 100),
    parameter("seed", SampleSeed, 0),
    parameter("device", Device, "auto"),
    parameter("out", SampleOut, None),
)


def build(arguments: Sequence[str]) -> typer.Typer:
    """The application. The options of a model are there for the model that the arguments name."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=_markup(),
        help="Classic generative models on fused kernels: train them, sample them, measure them.",
    )
    command_name, *rest = list(arguments) or [""]
    _add(app, info)
    app.add_typer(_train(rest if command_name == "train" else []), name="train", options_metavar="")
    _add_sample(app, rest if command_name == "sample" else [])
    _add(app, evaluate)
    _add(app, demo)
    _add(app, bench)
    return app


def _add(app: typer.Typer, function: Callable[..., int]) -> None:
    app.command(short_help=function.__doc__)(function)


def _markup() -> Any:
    return "rich" if narrow.width() is None else None


def _train(arguments: Sequence[str]) -> typer.Typer:
    train = typer.Typer(
        no_args_is_help=True,
        subcommand_metavar="MODEL [OPTIONS]...",
        rich_markup_mode=_markup(),
        help="Train a model. Under `torchrun` the same command runs on several processes.",
        epilog="`genfast train MODEL --help` shows the options of a model.",
    )
    for name in recipes.names():
        own = recipes.load(name).Options if list(arguments[:1]) == [name] else None

        def run(given: dict[str, Any], *, model: str = name, **shared: Any) -> int:
            from genfast.cli import train as implementation

            return guarded(implementation.train)(model, given, **shared)

        about = recipes.summary(name)
        train.command(name, help=about, short_help=about, rich_help_panel="Models")(
            command(run, _TRAIN if own else (), own)
        )
    return train


def _add_sample(app: typer.Typer, arguments: Sequence[str]) -> None:
    own = None
    settings = {}
    folders = [a for a in arguments if not a.startswith("-")]
    if folders:
        from genfast.training.saved import sample_options

        own = next(filter(None, map(sample_options, folders)), None)
        if own is None:  # then the missing run is the fault to tell, whatever else is wrong
            settings = {"ignore_unknown_options": True, "allow_extra_args": True}

    def run(given: dict[str, Any], **shared: Any) -> int:
        from genfast.cli import sample as implementation

        return guarded(implementation.sample)(given, **shared)

    about = "Draw samples from a trained model: samples.npy and samples.png."
    hint = "`genfast sample DIR --help` shows the options that the model of DIR has besides."
    app.command(
        "sample",
        help=about,
        short_help=about,
        epilog=None if own else hint,
        context_settings=settings,
        no_args_is_help=True,
    )(command(run, _SAMPLE, own))


def info() -> int:
    """Print versions, the instruction set in use, the CUDA build and the GPUs."""
    return print_info()


def evaluate(
    folder: Run,
    *,
    runs: Annotated[int, typer.Option(help="Runs of annealed importance sampling, from either side.")] = 100,
    betas: Annotated[int, typer.Option(help="Steps of its ladder of inverse temperatures.")] = 14_500,
    sweeps: Annotated[int, typer.Option(help="Gibbs sweeps of the chains that reverse AIS starts from.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    device: Device = "auto",
) -> int:
    """Tell how good a Boltzmann machine is: log Z from both sides, log-likelihoods; evaluation.json in DIR."""
    from genfast.cli import evaluate as implementation

    return guarded(implementation.evaluate)(folder, runs=runs, betas=betas, sweeps=sweeps, seed=seed, device=device)


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("runs/demo"),
    device: Device = "cpu",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
) -> int:
    """Train an RBM on handwritten digits, by the kernels and in plain PyTorch; show samples and times."""
    from genfast.cli import demo as implementation

    return guarded(implementation.demo)(out, device=device, seed=seed)


def bench() -> int:
    """Run the benchmark suite: `genfast bench --help` lists its own options."""
    return run_bench([])
