"""Inverse autoregressive flow: each dimension of the noise scaled and shifted by those before it."""

import dataclasses

from torch import nn

from genfast.flows import IAF
from genfast.recipes._flow import DATA_HELP, FlowOptions, FlowRecipe
from genfast.recipes._options import option

_IMAGES = {"batch_size": 256, "lr": 1e-3, "hidden": 256}


@dataclasses.dataclass(frozen=True, kw_only=True)
class IAFOptions(FlowOptions):
    """The options of `genfast train iaf`."""

    data: str = option("moons", DATA_HELP)
    steps: int | None = option(3000, "Updates, instead of epochs.", at_least=1)
    batch_size: int = option(512, "Rows an update, in each process.", at_least=1, shown="512; images: 256")
    lr: float = option(3e-3, "Learning rate of Adam.", above=0, shown="0.003; images: 0.001")
    layers: int = option(8, "Autoregressive layers, in alternating orders.", at_least=1)
    hidden: int = option(64, "Hidden units of each of a network's two layers.", at_least=1, shown="64; images: 256")


class Recipe(FlowRecipe[IAFOptions]):
    """See `genfast.flows.IAF`."""

    Options = IAFOptions
    image_presets = _IMAGES
    min_dim = 1

    def layers(self) -> list[nn.Module]:
        """Those of the model."""
        o = self.options
        return list(IAF(self.dim, o.layers, (o.hidden, o.hidden)).transforms)
