"""Radial flow: a stack of layers that contract or expand around a point each."""

import dataclasses

from torch import nn

from genfast.flows import Radial
from genfast.recipes._flow import DATA_HELP, FlowOptions, FlowRecipe
from genfast.recipes._options import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class RadialOptions(FlowOptions):
    """The options of `genfast train radial`."""

    data: str = option("moons", DATA_HELP)
    steps: int | None = option(4000, "Updates, instead of epochs.", at_least=1)
    lr: float = option(2e-2, "Learning rate of Adam.", above=0)
    layers: int = option(32, "Layers of the flow.", at_least=1)


class Recipe(FlowRecipe[RadialOptions]):
    """See `genfast.flows.Radial`."""

    Options = RadialOptions
    min_dim = 1

    def layers(self) -> list[nn.Module]:
        """All layers in one module, evaluated by one kernel."""
        return [Radial(self.dim, self.options.layers)]
