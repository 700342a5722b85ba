"""Planar flow: a stack of layers z + u tanh(w.z + b), for densities in the plane."""

import dataclasses

import torch
from torch import nn

from genfast.flows import Planar
from genfast.recipes._flow import DATA_HELP, FlowOptions, FlowRecipe
from genfast.recipes._options import option

_START = 0.3


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanarOptions(FlowOptions):
    """The options of `genfast train planar`."""

    data: str = option("u2", DATA_HELP)
    steps: int | None = option(4000, "Updates, instead of epochs.", at_least=1)
    lr: float = option(2e-2, "Learning rate of Adam.", above=0)
    layers: int = option(32, "Layers of the flow.", at_least=1)


class Recipe(FlowRecipe[PlanarOptions]):
    """See `genfast.flows.Planar`."""

    Options = PlanarOptions
    min_dim = 1

    def layers(self) -> list[nn.Module]:
        """All layers in one module, evaluated by one kernel; they start gently, so that none folds the plane."""
        layers = Planar(self.dim, self.options.layers)
        with torch.no_grad():
            layers.w.mul_(_START)
            layers.u.mul_(_START)
        return [layers]
