"""NICE: additive coupling layers, which keep volumes, behind one learned scale of each dimension."""

import dataclasses

from torch import nn

from genfast.flows import NICE
from genfast.recipes._flow import DATA_HELP, FlowOptions, FlowRecipe
from genfast.recipes._options import option

_IMAGES = {"batch_size": 256, "lr": 1e-3, "hidden": 256}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NICEOptions(FlowOptions):
    """The options of `genfast train nice`."""

    data: str = option("moons", DATA_HELP)
    steps: int | None = option(3000, "Updates, instead of epochs.", at_least=1)
    batch_size: int = option(512, "Rows an update, in each process.", at_least=1, shown="512; images: 256")
    lr: float = option(3e-3, "Learning rate of Adam.", above=0, shown="0.003; images: 0.001")
    layers: int = option(6, "Coupling layers.", at_least=1)
    hidden: int = option(64, "Hidden units of each of a conditioner's two layers.", at_least=1, shown="64; images: 256")


class Recipe(FlowRecipe[NICEOptions]):
    """See `genfast.flows.NICE`."""

    Options = NICEOptions
    image_presets = _IMAGES

    def layers(self) -> list[nn.Module]:
        """The scale, and couplings that move the odd and the even dimensions in turn."""
        return list(NICE(self.dim, self.options.layers, (self.options.hidden,) * 2).transforms)
