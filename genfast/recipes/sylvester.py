"""Sylvester flow: a stack of planar layers of many units each."""

import dataclasses

from torch import nn

from genfast._errors import RunError
from genfast._errors import option as named
from genfast.flows import Sylvester
from genfast.flows.sylvester import VARIANTS
from genfast.recipes._flow import DATA_HELP, FlowOptions, FlowRecipe
from genfast.recipes._options import option

_IMAGES = {"batch_size": 256, "lr": 1e-3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SylvesterOptions(FlowOptions):
    """The options of `genfast train sylvester`."""

    data: str = option("u2", DATA_HELP)
    steps: int | None = option(3000, "Updates, instead of epochs.", at_least=1)
    batch_size: int = option(512, "Rows an update, in each process.", at_least=1, shown="512; images: 256")
    lr: float = option(1e-2, "Learning rate of Adam.", above=0, shown="0.01; images: 0.001")
    layers: int = option(16, "Layers of the flow.", at_least=1)
    units: int | None = option(None, "Units of a layer.", at_least=1, shown="one a dimension, up to 32")
    variant: str = option("orthogonal", f"How a layer's columns are made: {', '.join(VARIANTS)}.", choices=VARIANTS)


class Recipe(FlowRecipe[SylvesterOptions]):
    """See `genfast.flows.Sylvester`."""

    Options = SylvesterOptions
    image_presets = _IMAGES
    min_dim = 1

    def layers(self) -> list[nn.Module]:
        """All layers in one module, evaluated by one kernel."""
        o = self.options
        if o.units is not None and o.units > self.dim:
            raise RunError(f"{named('units')}: got {o.units}, want at most the {self.dim} dimensions of the data")
        return [Sylvester(self.dim, o.layers, o.units, variant=o.variant)]
