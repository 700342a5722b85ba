"""The running mean of the parameters."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from genfast._errors import RunError

_EVERY = 10


class Average:
    r"""The mean of a model's parameters over about the last `over` updates, taken every tenth one.

    .. math::
        \bar\theta \leftarrow d \bar\theta + (1 - d) \theta, \quad d = \min(1 - 10 / over, (1 + n) / (10 + n))

    with n the number of updates of the mean so far: early on it forgets its start faster. Before the tenth update of
    the model the mean is the parameters themselves, so that a very short run is trained all the same.

    Args:
        model: its parameters are averaged; on their device.
        over: about how many updates.

    Source:
        Polyak & Juditsky 1992; for Boltzmann machines, Swersky et al. 2010, "A tutorial on stochastic approximation
        algorithms for training restricted Boltzmann machines and deep belief nets".
    """

    def __init__(self, model: nn.Module, over: int) -> None:
        self.model = model
        self.decay = max(0.0, 1 - _EVERY / over)
        self.values = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after `step` updates."""
        if step % _EVERY and step > _EVERY:
            return
        n = step // _EVERY
        decay = min(self.decay, n / (9 + n))  # 0 before the first
        torch._foreach_lerp_(self.values, [p.detach() for p in self.model.parameters()], 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model with the mean for its parameters, within the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def settle(self) -> None:
        """Give the model the mean for good, at the end of a run."""
        self._swap()

    def _swap(self) -> None:
        for parameter, value in zip(self.model.parameters(), self.values, strict=True):
            parameter.data, value.data = value.data, parameter.data

    def state_dict(self) -> dict[str, Tensor]:
        """The mean, by the parameters' names."""
        return {name: value for (name, _), value in zip(self.model.named_parameters(), self.values, strict=True)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take a saved mean.

        Raises:
            RunError: it does not fit the parameters.
        """
        own = self.state_dict()
        if own.keys() != state.keys() or any(state[name].shape != value.shape for name, value in own.items()):
            raise RunError("the checkpoint does not fit the model: its mean has other parameters")
        for name, value in own.items():
            value.copy_(state[name])
