"""One process or, under torchrun, several: lightning-fabric wraps the model only where there is more than one."""

import logging
import os
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from genfast._errors import RunError, option
from genfast._optional import require


class Processes:
    """The processes of a run. Rank 0 writes the files; gradients are averaged; each rank draws its own numbers."""

    def __init__(self, device: str) -> None:
        self.size = _environment_integer("WORLD_SIZE", 1)
        self.rank = _environment_integer("RANK", 0) if self.size > 1 else 0
        self._fabric: Any = None
        if self.size == 1:
            self.device = choose_device(device)
            return
        kind = choose_device(device).type
        fabric = require("lightning_fabric", "training on several processes")
        strategies = require("lightning_fabric.strategies", "training on several processes")
        local = _environment_integer("LOCAL_WORLD_SIZE", self.size)
        if kind == "cuda" and local > torch.cuda.device_count():
            raise RunError(f"torchrun started {local} processes here, but torch sees {torch.cuda.device_count()} GPUs")
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        # The persistent chains are a buffer, and each rank has its own.
        strategy = strategies.DDPStrategy(broadcast_buffers=False)
        nodes = max(1, self.size // local)
        self._fabric = fabric.Fabric(accelerator=kind, devices=local, num_nodes=nodes, strategy=strategy)
        self._fabric.launch()
        self.device = self._fabric.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and progress."""
        return self.rank == 0

    def wrap(self, objective: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """The objective and optimiser whose gradients are averaged over the processes."""
        if self._fabric is None:
            return objective, optimizer
        with warnings.catch_warnings():  # newer versions rename the option, older ones know this name only
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")
            wrapped: tuple[Any, Any] = self._fabric.setup(objective, optimizer)
        return wrapped

    def backward(self, loss: Tensor) -> None:
        """`loss.backward()`."""
        if self._fabric is None:
            loss.backward()
        else:
            self._fabric.backward(loss)

    def agree(self, *flags: bool) -> list[bool]:
        """Each flag, raised where any process raised it."""
        if self.size == 1:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.int32, device=self.device)
        torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX)
        return [bool(v) for v in votes.tolist()]

    def gather(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        """The states of all processes, in the order of their ranks; on rank 0 only ([] elsewhere)."""
        if self.size == 1:
            return [state]
        states: list[Any] | None = [None] * self.size if self.is_first else None
        torch.distributed.gather_object(state, states)
        return states or []

    def close(self) -> None:
        """Leave the group of processes."""
        if self._fabric is not None and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def choose_device(name: str) -> torch.device:
    """The device of this name: "auto" is a GPU where there is one.

    Raises:
        RunError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RunError(f"{option('device')}: got {name!r}, want auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise RunError(f"{option('device')}: got {name!r}, want auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RunError(f"{option('device')} cuda: torch sees no GPU here (`genfast info` shows what there is)")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RunError(f"{option('device')} {name}: torch sees {torch.cuda.device_count()} GPUs")
    return device


def _environment_integer(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    try:
        return int(value)
    except ValueError as error:
        raise RunError(f"the environment variable {name} is {value!r}, want an integer") from error
