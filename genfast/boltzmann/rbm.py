"""The restricted Boltzmann machine: two layers of units of any kinds."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from genfast import ops
from genfast._arguments import integer, number, real
from genfast._module import reset
from genfast._tracing import is_differentiated
from genfast.boltzmann._annealing import AnnealingPath, BinaryPath
from genfast.boltzmann._bits import Parameters
from genfast.boltzmann._chains import alternate, independent
from genfast.boltzmann._contrastive import free_energy, product
from genfast.boltzmann._enumerate import log_partition_rbm
from genfast.boltzmann._gauge import zero_sum
from genfast.boltzmann._layered_path import LayeredPath
from genfast.boltzmann._pseudo import pseudo_likelihood
from genfast.boltzmann._refuse import refuse_gradient
from genfast.boltzmann._training import Trained
from genfast.boltzmann.units import Binary, Layer


class RBM(Trained):
    r"""A restricted Boltzmann machine: a pair of layers `visible` and `hidden`, by default of 0/1 units.

    .. math::
        E(v, h) = E_v(v) + E_h(h) - a \cdot v - b \cdot h - v^T W h, \qquad p(v, h) = e^{-E(v, h)} / Z

    with `W [n_visible, n_hidden]`, `vbias` (a) and `hbias` (b). :math:`E_v` and :math:`E_h` are the layers' own: 0 for
    discrete units, so that for 0/1 units p(h=1|v) = sigmoid(b + v W) and p(v=1|h) = sigmoid(a + W h). The free energy
    is F(v) = E_v(v) - a.v - A_h(b + v W), with p(v) = e^-F(v) / Z and A_h the hidden layer's `log_normaliser`: the sum
    of softplus for 0/1 units. See `genfast.boltzmann.units` for the kinds: `Binary`, `Spin` (-1 and 1), `Softmax`,
    `Gaussian`, `ReLU`, `DoubleReLU`, and `Partitioned` for several beside each other.

    Training minimises `cd_loss` (contrastive divergence) or `pcd_loss` (persistent chains) with any torch optimiser.
    The persistent chains are the buffer `chains`: saved in the state dict and resumed from it.

    **Data.** 0/1 units are 0 or 1, in any dtype, bool and integers too. Where a formula is an expectation over
    independent units, numbers in [0, 1] are taken as their probabilities (grey pixels, hidden activations; "mean
    field"): in `energy`, `free_energy`, the conditionals, `reconstruct`, `init_from_data`, and as the data of all
    losses, whose positive statistics they enter as they are, while the chains of CD start at states drawn from them.
    `log_prob`, `pseudo_likelihood`, `gibbs` and `sample` speak of states, and take 0 and 1 alone. In the same way spins
    take means in [-1, 1] and softmax units probabilities of their classes. Anything else, such as pixels of 0 ... 255
    or NaN, is refused on the CPU; where looking would wait (on a GPU) or cannot be done (inside `torch.compile`,
    `vmap`), it counts as NaN, and so do the results.

    **Chains.** For units of two values (0/1 and spins, which are 0/1 by an exact change of variables) they run in one
    fused call, and are the same bits for a seed on every device and any split of the batch (`genfast.ops.rbm_gibbs`).
    Other kinds are drawn by torch: the same seed gives the same chains for the same call on one kind of device.

    For users of scikit-learn's `BernoulliRBM`: `components_` is `W.T`, `intercept_visible_` is `vbias`,
    `intercept_hidden_` is `hbias`; `transform(v)` is `hidden_probs(v)`; `gibbs(v)` is `gibbs(v)[0]`;
    `score_samples(v)` is `pseudo_likelihood(v)`; `fit` is PCD-1 with `batch_size` chains and no shuffling.

    Args:
        n_visible: number of visible 0/1 units, or the visible layer.
        n_hidden: number of hidden 0/1 units, or the hidden layer.
        init_std: standard deviation of the normal that W starts from (biases start at 0).
        generator: draws the initial W; the default generator otherwise.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size is not a positive integer, init_std is negative, or both layers are one object.

    Source:
        Smolensky 1986; Hinton 2002, "Training products of experts by minimizing contrastive divergence";
        Tieleman 2008, "Training restricted Boltzmann machines using approximations to the likelihood gradient".

    Example:
        >>> rbm = RBM(64, 100)
        >>> optimizer = torch.optim.SGD(rbm.parameters(), lr=0.1)
        >>> v = torch.bernoulli(torch.full((32, 64), 0.3))
        >>> rbm.pcd_loss(v, k=1).backward()
        >>> optimizer.step()
        >>> rbm.sample(4, n_steps=100).shape
        torch.Size([4, 64])
        >>> RBM(units.Gaussian(64), units.ReLU(100)).sample(4, n_steps=100).shape
        torch.Size([4, 64])
    """

    def __init__(
        self,
        n_visible: int | Layer,
        n_hidden: int | Layer,
        *,
        init_std: float = 0.01,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.init_std = number("init_std", init_std, 0, math.inf)
        visible, hidden = _layer("n_visible", n_visible), _layer("n_hidden", n_hidden)
        if visible is hidden:
            raise ValueError("n_visible, n_hidden: got one layer for both, want two")
        self.n_visible, self.n_hidden = visible.size, hidden.size
        self.register_buffer("chains", torch.empty(0, self.n_visible, device=device, dtype=dtype))
        for name in ("fast_W", "fast_vbias", "fast_hbias"):
            self.register_buffer(name, None)
        self._new_parameters()
        self.visible, self.hidden = visible.to(self.chains), hidden.to(self.chains)
        #: Whether the losses check themselves and the parameters (a synchronisation on CUDA; turn it off inside
        #: CUDA graphs and call `check_finite` now and then). Inside torch.compile nothing is checked.
        self.nonfinite_check = True
        self._reset(generator)

    def _new_parameters(self) -> None:
        n, m = self.n_visible, self.n_hidden
        for name, shape in (("W", (n, m)), ("vbias", (n,)), ("hbias", (m,))):
            self.register_parameter(name, nn.Parameter(self.chains.new_empty(shape)))

    @torch.no_grad()
    def reset_parameters(self, *, generator: torch.Generator | None = None) -> None:
        """Draw the initial W again, set biases and the layers' own parameters to 0 and forget the persistent chains."""
        for layer in (self.visible, self.hidden):
            reset(layer)
        self._reset(generator)

    @torch.no_grad()
    def _reset(self, generator: torch.Generator | None) -> None:
        nn.init.normal_(self.W, 0.0, self.init_std, generator=generator)
        nn.init.zeros_(self.vbias)
        nn.init.zeros_(self.hbias)
        self._forget_chains()

    def _forget_chains(self) -> None:
        self.chains = self.chains.new_empty(0, self.n_visible)
        self.fast_W = self.fast_vbias = self.fast_hbias = None

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        return f"n_visible={self.n_visible}, n_hidden={self.n_hidden}, n_chains={self.n_chains}"

    # -- energies -----------------------------------------------------------------------------------------------------

    def energy(self, v: Tensor, h: Tensor) -> Tensor:
        """E(v, h) = E_v(v) + E_h(h) - a.v - b.h - v'W h of v `[..., n_visible]` and h `[..., n_hidden]`: `[...]`.

        Raises:
            ValueError: a last dimension does not fit, or values are not those of the units.
        """
        v, h = self._visible(v), self._hidden(h)
        linear = -(v @ self.vbias) - h @ self.hbias - ((v @ self.W) * h).sum(-1)
        return linear + sum(
            layer.energy(x) for layer, x in ((self.visible, v), (self.hidden, h)) if layer.n_states is None
        )

    def free_energy(self, v: Tensor) -> Tensor:
        """F(v) = E_v(v) - a.v - A_h(b + v W) = -log of the sum over h of exp(-E(v, h)), differentiable.

        For 0/1 hidden units A_h(u) = sum_j softplus(u_j).

        Args:
            v: `[..., n_visible]`, states of the visible units, or means of such (0/1 units: probabilities).

        Returns:
            `[...]`.

        Raises:
            ValueError: the last dimension of v is not n_visible, or values are not those of the units.
        """
        return free_energy(self._visible(v), self._parameters_now(), self.visible, self.hidden)

    def log_partition(self) -> Tensor:
        """The exact log Z, by enumeration of the smaller discrete layer, in float64; differentiable to any order.

        For 0/1 units the work is 2^min(n_visible, n_hidden) times the larger layer, and twice that again for the
        gradient, which is the model's expectation. Memory does not grow with the number of states.

        Raises:
            ValueError: the layer has more than 25 units (2^25 states), or none is discrete and not both are Gaussian;
                `genfast.boltzmann.ais_log_z` estimates log Z then.
        """
        return log_partition_rbm(*self._parameters_now(), self.visible, self.hidden)

    def log_prob(self, v: Tensor, *, log_partition: Tensor | float | None = None) -> Tensor:
        """The log-likelihood log p(v) = -F(v) - log Z of v `[..., n_visible]`; returns `[...]`.

        Its gradient is that of exact maximum likelihood, with log Z computed here. A log Z that is given as a constant
        says nothing about the gradient of log Z: the result then has no gradient in the parameters, and asking for one
        raises. A tensor that requires a gradient brings that of log Z along.

        Args:
            v: visible states.
            log_partition: log Z where it is known; computed exactly otherwise (see `log_partition`).

        Raises:
            ValueError: the last dimension of v is not n_visible, v holds other values than states (0 and 1), or log Z
                is asked of a machine too large for it.
        """
        v, parameters, wrap = self._states(v), self._parameters_now(), None
        if log_partition is None:
            log_partition = self.log_partition()
        elif _is_constant(log_partition):
            wrap = _without_gradient
            W, vbias, hbias = parameters
            parameters = wrap(W), wrap(vbias), wrap(hbias)
        free = free_energy(v, parameters, self.visible, self.hidden, wrap=wrap)
        return -free - (log_partition.to(free.dtype) if isinstance(log_partition, Tensor) else log_partition)

    @torch.no_grad()
    def pseudo_likelihood(self, v: Tensor, *, exact: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Pseudo-log-likelihood sum_i log p(v_i | v_-i) of discrete states v `[..., n_visible]`; returns `[...]`.

        For 0/1 units log p(v_i | v_-i) = log sigmoid(F(v with unit i flipped) - F(v)). As in scikit-learn's
        `score_samples`, one random unit a row stands for all and its term is multiplied by their number (one of each
        part of a partitioned layer); this estimate is unbiased. A measure of progress, it has no gradient.

        Args:
            v: states, 0/1 or of another discrete kind.
            exact: take every unit: for 0/1 units in one pass (`genfast.ops.rbm_pseudo_likelihood`), else in turn.
            generator: draws the units; the default generator otherwise.

        Raises:
            ValueError: v does not fit, or visible units are continuous: their conditionals have no closed form.

        Source:
            Besag 1975, "Statistical analysis of non-lattice data".
        """
        if self.visible.n_states is None:
            raise ValueError(f"pseudo_likelihood: the visible layer is {self.visible}, want discrete units")
        v, parameters = self._states(v), self._parameters_now()
        if any(is_differentiated(x, by_graph=False) for x in (v, *parameters)):
            raise RuntimeError("pseudo_likelihood: has no gradient, but a transform or forward mode asks for one")
        if exact and type(self.visible) is type(self.hidden) is Binary:
            return ops.rbm_pseudo_likelihood(v, *parameters)
        return pseudo_likelihood(v, parameters, self.visible, self.hidden, exact=exact, generator=generator)

    # -- conditionals and chains --------------------------------------------------------------------------------------

    def hidden_mean(self, v: Tensor, *, beta: float = 1.0) -> Tensor:
        """The mean of p(h|v), of inputs b + v W: `[..., n_visible]` to `[..., n_hidden]`."""
        W, _, hbias = self._parameters_now()
        return self.hidden.mean(product(self._visible(v), W, hbias), beta=beta)

    def visible_mean(self, h: Tensor, *, beta: float = 1.0) -> Tensor:
        """The mean of p(v|h), of inputs a + W h: `[..., n_hidden]` to `[..., n_visible]`."""
        W, vbias, _ = self._parameters_now()
        return self.visible.mean(product(self._hidden(h), W.T, vbias), beta=beta)

    def hidden_probs(self, v: Tensor, *, beta: float = 1.0) -> Tensor:
        """`hidden_mean`: for 0/1 units p(h=1|v) = sigmoid(beta (b + v W))."""
        return self.hidden_mean(v, beta=beta)

    def visible_probs(self, h: Tensor, *, beta: float = 1.0) -> Tensor:
        """`visible_mean`: for 0/1 units p(v=1|h) = sigmoid(beta (a + W h))."""
        return self.visible_mean(h, beta=beta)

    @torch.no_grad()
    def sample_hidden(self, v: Tensor, *, beta: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draw h ~ p(h|v): states `[..., n_hidden]`."""
        W, _, hbias = self._parameters_now()
        return self.hidden.sample(product(self._visible(v), W, hbias), beta=beta, generator=generator)

    @torch.no_grad()
    def sample_visible(self, h: Tensor, *, beta: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draw v ~ p(v|h): states `[..., n_visible]`."""
        W, vbias, _ = self._parameters_now()
        return self.visible.sample(product(self._hidden(h), W.T, vbias), beta=beta, generator=generator)

    def gibbs(
        self,
        v: Tensor,
        n_gibbs_steps: int = 1,
        *,
        beta: float | Tensor = 1.0,
        clamp: Tensor | None = None,
        generator: torch.Generator | None = None,
        seed: int | Tensor | None = None,
        first_chain: int = 0,
        first_step: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Run block Gibbs chains for n_gibbs_steps sweeps (h given v, then v given h), 0/1 units in one fused call.

        Args:
            v: states to start from, `[..., n_visible]`, one chain a row; 0/1 states in any dtype.
            n_gibbs_steps: number of sweeps.
            beta: inverse temperature, a number or one a chain.
            clamp: boolean mask of visible units that keep their value.
            generator: draws the seed of the chains; the default generator otherwise.
            seed: the seed itself, instead of a generator: the same seed gives the same chains.
            first_chain: number of the first row. Chains of two-valued units depend on their own number only, so a batch
                can be split; other kinds draw different numbers for every (first_chain, first_step).
            first_step: number of the first sweep, in the same way.

        Returns:
            The last pair (v, h), in the dtype of v, or in that of W where the states do not fit in it.
        """
        real("v", v, self.n_visible)
        try:
            return alternate(
                v, self._parameters_now(), self.visible, self.hidden, n_steps=n_gibbs_steps, beta=beta, clamp=clamp,
                generator=generator, seed=seed, first_chain=first_chain, first_step=first_step,
            )  # fmt: skip
        except ValueError:
            self._states(v)  # says more, where it is v
            raise

    @torch.no_grad()
    def sample(
        self,
        n_samples: int,
        n_steps: int = 1000,
        *,
        start: Tensor | None = None,
        beta: float | Tensor = 1.0,
        clamp: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw visible states from n_samples chains of n_steps sweeps.

        The chains start from the visible units' distribution under their biases alone where no `start` is given. They
        converge to the machine's distribution as n_steps grows; one with separate modes may need very many.

        Args:
            n_samples: number of chains, and so of samples.
            n_steps: sweeps a chain.
            start: states `[n_samples, n_visible]` to start from.
            beta: inverse temperature.
            clamp: boolean mask of visible units that keep the value they have in `start`.
            generator: source of randomness; the default generator otherwise.

        Returns:
            States `[n_samples, n_visible]`.

        Raises:
            ValueError: `start` does not fit, or `clamp` comes without `start`.
        """
        if start is None:
            if clamp is not None:
                raise ValueError("clamp: got a mask without start, want start to hold the clamped values")
            start = self._random_visible(n_samples, generator)
        start = self._states(start, "start")
        if start.shape[0] != n_samples:
            raise ValueError(f"start: got {start.shape[0]} rows, want n_samples = {n_samples}")
        return self.gibbs(start, n_steps, beta=beta, clamp=clamp, generator=generator)[0]

    def reconstruct(self, v: Tensor) -> Tensor:
        """The mean-field reconstruction E[v' | h = E[h|v]]: means (of 0/1 units: probabilities) `[..., n_visible]`."""
        return self.visible_mean(self.hidden_mean(v))

    @torch.no_grad()
    def inpaint(
        self,
        v: Tensor,
        missing: Tensor,
        n_steps: int = 100,
        *,
        mean: bool = False,
        beta: float | Tensor = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw the missing visible units given the others, by chains of n_steps sweeps in which these are clamped.

        Args:
            v: states `[..., n_visible]`; what it holds at the missing units does not matter.
            missing: boolean mask `[n_visible]` or `[..., n_visible]`, True where a unit is to be drawn.
            n_steps: number of sweeps; the chains start from the visible biases alone.
            mean: return the missing units' means given the last hidden states instead of states.
            beta: inverse temperature.
            generator: source of randomness; the default generator otherwise.

        Returns:
            v in the dtype of W, with the missing units replaced.

        Raises:
            TypeError: `missing` is no mask.
            ValueError: a shape does not fit, or v holds other values than states where it is known.

        Example:
            >>> rbm, v = RBM(6, 3), torch.ones(2, 6)
            >>> rbm.inpaint(v, torch.tensor([False] * 3 + [True] * 3))[:, :3]
            tensor([[1., 1., 1.],
                    [1., 1., 1.]])
        """
        real("v", v, self.n_visible)
        real("missing", missing)
        if missing.dtype != torch.bool:
            raise TypeError(f"missing: got {missing.dtype}, want a torch.bool mask")
        if missing.shape not in (v.shape, v.shape[-1:]):
            raise ValueError(f"missing: got shape {list(missing.shape)}, want {list(v.shape)} or {[self.n_visible]}")
        begin = self._random_visible(v.numel() // self.n_visible, generator).reshape(v.shape)
        start = self._states(torch.where(missing, begin, v.to(begin.dtype)))
        out, h = self.gibbs(start, n_steps, beta=beta, clamp=~missing, generator=generator)
        if not mean:
            return out
        W, vbias, _ = self._parameters_now()
        return torch.where(missing, self.visible.mean(product(h, W.T, vbias), beta=beta), start)

    def annealing_path(self, base: Tensor | None = None) -> AnnealingPath:
        """The path of annealed importance sampling from independent units to this machine, as it is now.

        Args:
            base: where it begins: data `[N, n_visible]`, whose means the visible units have there; inputs (of 0/1
                units: log-odds) `[n_visible]`; None for inputs of 0 (uniform states, where they are discrete). See
                `genfast.boltzmann.ais_log_z`.
        """
        if type(self.visible) is type(self.hidden) is Binary:
            return BinaryPath(*self._parameters_now(), base)
        return LayeredPath(self, base)

    @torch.no_grad()
    def zero_sum_(self) -> "RBM":
        """Move softmax units to the zero-sum gauge: the same distribution, W and biases with sum 0 over the classes.

        Adding a number to the inputs of all classes of a unit changes nothing; so W and the biases of softmax units are
        not unique, and only in a fixed gauge do they compare, or their norm mean something. Gradients leave the gauge:
        call this after updates. Machines without softmax units stay as they are.

        Returns:
            The machine itself.
        """
        self._assign(*zero_sum(*self._parameters_now(), self.visible, self.hidden))
        return self

    # -- internals ----------------------------------------------------------------------------------------------------

    def _parameters_now(self) -> Parameters:
        return self.W, self.vbias, self.hbias

    def _assign(self, W: Tensor, vbias: Tensor, hbias: Tensor) -> None:
        """Set W and the biases."""
        for p, value in ((self.W, W), (self.vbias, vbias), (self.hbias, hbias)):
            p.copy_(value)

    def _visible(self, v: Tensor, name: str = "v") -> Tensor:
        return self.visible.check(name, v, self.chains.dtype)

    def _states(self, v: Tensor, name: str = "v") -> Tensor:
        return self.visible.check(name, v, self.chains.dtype, states=True)

    def _hidden(self, h: Tensor) -> Tensor:
        return self.hidden.check("h", h, self.chains.dtype)

    def _advance(self, v: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
        return self.gibbs(v, k, generator=generator, first_chain=self.first_chain)[0]

    def _random_visible(self, n: int, generator: torch.Generator | None) -> Tensor:
        integer("number of chains", n, at_least=0)
        return independent(n, self.visible, self.vbias, generator=generator)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(prefix + "chains")
        if isinstance(saved, Tensor) and saved.ndim == 2 and saved.shape[1] == self.n_visible:
            self.chains = self.chains.new_empty(saved.shape)
        shapes = {
            "fast_W": (self.n_visible, self.n_hidden),
            "fast_vbias": (self.n_visible,),
            "fast_hbias": (self.n_hidden,),
        }
        for name, shape in shapes.items():
            setattr(self, name, self.chains.new_empty(shape) if prefix + name in state_dict else None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _layer(name: str, value: int | Layer) -> Layer:
    return value if isinstance(value, Layer) else Binary(integer(name, value))


_CONSTANT_LOG_Z = (
    "log_prob: log_partition was given as a constant, so the gradient in the parameters is unknown; leave "
    "log_partition out (exact, for a small machine), or call log_prob under torch.no_grad()"
)


def _without_gradient(x: Tensor) -> Tensor:
    return refuse_gradient(x, _CONSTANT_LOG_Z)


def _is_constant(t: Tensor | float) -> bool:
    return not isinstance(t, Tensor) or not is_differentiated(t)
