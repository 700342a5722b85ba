"""Flow++: coupling layers by the CDFs of logistic mixtures."""

import dataclasses

from torch import nn

from genfast.flows import FlowPlusPlus
from genfast.recipes._flow import DATA_HELP, FlowOptions, FlowRecipe
from genfast.recipes._options import option

_IMAGES = {"batch_size": 256, "lr": 1e-3, "hidden": 128, "layers": 6}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowPlusPlusOptions(FlowOptions):
    """The options of `genfast train flowplusplus`."""

    data: str = option("moons", DATA_HELP)
    steps: int | None = option(2000, "Updates, instead of epochs.", at_least=1)
    batch_size: int = option(512, "Rows an update, in each process.", at_least=1, shown="512; images: 256")
    lr: float = option(3e-3, "Learning rate of Adam.", above=0, shown="0.003; images: 0.001")
    layers: int = option(4, "Coupling layers.", at_least=1, shown="4; images: 6")
    hidden: int = option(64, "Hidden units of each of a conditioner's two layers.", at_least=1, shown="64; images: 128")
    components: int = option(8, "Components of a mixture.", at_least=1)


class Recipe(FlowRecipe[FlowPlusPlusOptions]):
    """See `genfast.flows.FlowPlusPlus`."""

    Options = FlowPlusPlusOptions
    image_presets = _IMAGES
    min_dim = 1

    def layers(self) -> list[nn.Module]:
        """Couplings that move the last half and the first half in turn."""
        o = self.options
        return list(FlowPlusPlus(self.dim, o.layers, (o.hidden, o.hidden), n_components=o.components).transforms)
