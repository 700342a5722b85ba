"""RealNVP: affine coupling layers, whose networks scale and shift one half of the data by the other."""

import dataclasses

from torch import nn

from genfast import data
from genfast._errors import RunError
from genfast._errors import option as named
from genfast.flows import RealNVP
from genfast.recipes import _base
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
    layers: int = option(8, "Coupling layers.", at_least=1)
    hidden: int = option(
        64,
        "Hidden units, or channels, of each of a conditioner's two layers.",
        at_least=1,
        shown="64; images: 256",
    )
    network: str = option("mlp", "Of the conditioners: mlp, or conv for images.", choices=("mlp", "conv"))


class Recipe(FlowRecipe[RealNVPOptions]):
    """See `genfast.flows.RealNVP`."""

    Options = RealNVPOptions
    image_presets = _IMAGES

    @classmethod
    def start(cls, options: RealNVPOptions, source: _base.Source) -> "Recipe":
        """Refuse convolutions of what are no images."""
        if options.network == "conv" and (isinstance(source, data.Density) or source.shape is None):
            raise RunError(f"{named('network')}: {source.name} holds no images, want mlp")
        recipe = super().start(options, source)
        assert isinstance(recipe, cls)  # noqa: S101  (as made by cls)
        return recipe

    def layers(self) -> list[nn.Module]:
        """Couplings that move one part of the dimensions and the other in turn."""
        o = self.options
        dim = self.dim if o.network == "mlp" or self.image_shape is None else self.image_shape
        return list(RealNVP(dim, o.layers, (o.hidden, o.hidden)).transforms)
