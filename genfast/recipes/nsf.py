"""Neural spline flow: coupling layers of monotone rational-quadratic splines."""

import dataclasses

from torch import nn

from genfast.flows import SplineCoupling, half_mask
from genfast.recipes._flow import DATA_HELP, FlowOptions, FlowRecipe
from genfast.recipes._options import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class NSFOptions(FlowOptions):
    """The options of `genfast train nsf`."""

    data: str = option("moons", DATA_HELP)
    steps: int | None = option(2000, "Updates, instead of epochs.", at_least=1)
    lr: float = option(3e-3, "Learning rate of Adam.", above=0)
    layers: int = option(4, "Coupling layers.", at_least=1)
    hidden: int = option(64, "Hidden units of each of a conditioner's two layers.", at_least=1)
    bins: int = option(8, "Bins of a spline.", at_least=2)
    bound: float = option(5.0, "The splines live on [-bound, bound]; outside they are the identity.", above=0)


class Recipe(FlowRecipe[NSFOptions]):
    """See `genfast.flows.SplineCoupling`."""

    Options = NSFOptions

    def layers(self) -> list[nn.Module]:
        """Couplings that move the last half and the first half in turn."""
        o = self.options
        return [
            SplineCoupling(
                half_mask(self.dim, last=i % 2 == 0), hidden=(o.hidden, o.hidden), n_bins=o.bins, bound=o.bound
            )
            for i in range(o.layers)
        ]
