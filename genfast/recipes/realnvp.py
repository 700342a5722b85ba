"""RealNVP: affine coupling layers, whose networks scale and shift one half of the data by the other."""

import dataclasses

from torch import nn

from genfast.flows import AffineCoupling, half_mask
from genfast.recipes._flow import DATA_HELP, FlowOptions, FlowRecipe
from genfast.recipes._options import option

_IMAGES = {"batch_size": 256, "lr": 1e-3, "hidden": 256}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealNVPOptions(FlowOptions):
    """The options of `genfast train realnvp`."""

    data: str = option("moons", DATA_HELP)
    steps: int | None = option(3000, "Updates, instead of epochs.", at_least=1)
    batch_size: int = option(512, "Rows an update, in each process.", at_least=1, shown="512; images: 256")
    lr: float = option(3e-3, "Learning rate of Adam.", above=0, shown="0.003; images: 0.001")
    layers: int = option(8, "Coupling layers.", at_least=1, shown="64; images: 256")
    hidden: int = option(64, "Hidden units of each of a conditioner's two layers.", at_least=1, shown="64; images: 256")


class Recipe(FlowRecipe[RealNVPOptions]):
    """See `genfast.flows.AffineCoupling`."""

    Options = RealNVPOptions
    image_presets = _IMAGES

    def layers(self) -> list[nn.Module]:
        """Couplings that move the last half and the first half in turn."""
        hidden = (self.options.hidden, self.options.hidden)
        return [AffineCoupling(half_mask(self.dim, last=i % 2 == 0), hidden=hidden) for i in range(self.options.layers)]
