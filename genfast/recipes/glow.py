"""Glow: images on several scales, by steps of ActNorm, 1x1 convolution and affine coupling."""

import dataclasses

import torch
from torch import nn

from genfast import data
from genfast._errors import RunError
from genfast._errors import option as named
from genfast.flows import Glow
from genfast.recipes import _base
from genfast.recipes._flow import FlowOptions, FlowRecipe
from genfast.recipes._options import option

_FIRST = 512  # images that set the scales of ActNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlowOptions(FlowOptions):
    """The options of `genfast train glow`."""

    data: str = option("digits", "The images digits, mnist, fashion-mnist, or a file or folder of images.")
    steps: int | None = option(2000, "Updates, instead of epochs.", at_least=1)
    batch_size: int = option(128, "Images an update, in each process.", at_least=1)
    lr: float = option(1e-3, "Learning rate of Adam.", above=0)
    levels: int = option(2, "Levels, each of which halves height and width.", at_least=1)
    depth: int = option(8, "Steps of ActNorm, 1x1 convolution and coupling in each level.", at_least=1)
    hidden: int = option(64, "Hidden channels of each coupling's network.", at_least=1)


class Recipe(FlowRecipe[GlowOptions]):
    """See `genfast.flows.Glow`."""

    Options = GlowOptions

    @classmethod
    def start(cls, options: GlowOptions, source: _base.Source) -> "Recipe":
        """Refuse what are no images, or cannot be halved that often."""
        if isinstance(source, data.Density) or source.shape is None:
            raise RunError(f"{cls.name()} learns images; {source.name} holds none")
        height, width = source.shape[-2:]
        if height % 2**options.levels or width % 2**options.levels:
            raise RunError(
                f"{named('levels')}: got {options.levels}, but images of {height} x {width} pixels cannot be halved as "
                "often"
            )
        recipe = super().start(options, source)
        assert isinstance(recipe, cls)  # noqa: S101  (as made by cls)
        return recipe

    def layers(self) -> list[nn.Module]:
        """Those of the model."""
        o, shape = self.options, self.image_shape
        assert shape is not None  # noqa: S101  (see start)
        return list(Glow(shape, o.levels, o.depth, o.hidden).transforms)

    def _look(self, source: data.Dataset) -> None:
        """Fit the scale to the data, and then those of ActNorm to what comes of it."""
        super()._look(source)
        rows = source.x[:_FIRST]
        noise = torch.rand(rows.shape, generator=torch.Generator().manual_seed(0), dtype=rows.dtype)
        with torch.no_grad():
            self.model.inverse(self.events(torch.addcmul(rows, self._width, noise)))
