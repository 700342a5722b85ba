"""The deep belief network."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genfast import ops
from genfast._arguments import integer
from genfast._finite import check_finite
from genfast._module import Module
from genfast.boltzmann._states import binary, drawn, probabilities
from genfast.boltzmann.rbm import RBM
from genfast.ops.rbm import state_product

Progress = Callable[[str, int, int], None]


class Recognition(Module):
    """The weights `[n_below, n_above]` and biases of the way up through a layer, once they leave the way down's."""

    def __init__(self, rbm: RBM) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.zeros_like(rbm.W))
        self.bias = nn.Parameter(torch.zeros_like(rbm.hbias))

    def reset_parameters(self) -> None:
        """Zeros: `DeepBeliefNetwork.untie` gives them their values."""
        nn.init.zeros_(self.W)
        nn.init.zeros_(self.bias)


class DeepBeliefNetwork(Module):
    r"""A deep belief network: a restricted Boltzmann machine on top of directed layers of binary units.

    .. math::
        p(v, h^1, ..., h^L) = p(v | h^1) \, p(h^1 | h^2) \cdots p(h^{L-2} | h^{L-1}) \; p_{RBM}(h^{L-1}, h^L)

    Each layer is an `RBM`, in the list `rbms`. All but the last one lend the network their way down,
    p(x_i = 1 | h) = sigmoid(a + W h), and, for inference, their way up, q(h_j = 1 | x) = sigmoid(b + x W), which is the
    posterior as if the layers above were not there. The last one, `top`, is the prior of the units below it.

    Training is greedy: each layer is an RBM of the states of the one below (`layer_loss`, `layer_backward`, or `fit`),
    and a layer that improves on its data improves a lower bound on log p(v) (`variational_bound`). Fine-tuning by
    `up_down_loss` (contrastive wake-sleep) unties the ways up and down.

    Args:
        n_visible: number of visible units.
        hidden: numbers of units of the hidden layers, from the lowest.
        init_std: standard deviation of the normal that each W starts from (biases start at 0).
        generator: draws the initial weights; the default generator otherwise.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: there is no hidden layer, a size is not a positive integer, or init_std is negative.

    Source:
        Hinton, Osindero, Teh 2006, "A fast learning algorithm for deep belief nets".

    Example:
        >>> dbn = DeepBeliefNetwork(64, [50, 50])
        >>> v = torch.bernoulli(torch.full((200, 64), 0.3))
        >>> dbn.fit(v, epochs=2)
        >>> dbn.sample(4, n_steps=100).shape, dbn.transform(v).shape
        (torch.Size([4, 64]), torch.Size([200, 50]))
    """

    untied: Tensor

    def __init__(
        self,
        n_visible: int,
        hidden: Sequence[int],
        *,
        init_std: float = 0.01,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if len(hidden) == 0:
            raise ValueError("hidden: got no sizes, want that of at least one hidden layer")
        self.sizes = [integer("n_visible", n_visible), *(integer("hidden", n) for n in hidden)]
        self.rbms = nn.ModuleList(
            RBM(a, b, init_std=init_std, generator=generator, device=device, dtype=dtype)
            for a, b in itertools.pairwise(self.sizes)
        )
        self.recognition = nn.ModuleList(Recognition(self.layer(i)) for i in range(self.n_layers - 1))
        # Whether `recognition` holds the ways up; until then they are those of the RBMs.
        self.register_buffer("untied", torch.zeros((), dtype=torch.bool, device=device))

    @torch.no_grad()
    def reset_parameters(self, *, generator: torch.Generator | None = None) -> None:
        """Draw all initial weights again; ways up and down are tied."""
        for i in range(self.n_layers):
            self.layer(i).reset_parameters(generator=generator)
        self.untied.zero_()

    def extra_repr(self) -> str:
        """Sizes, for the printed module."""
        return "-".join(map(str, self.sizes))

    @property
    def n_layers(self) -> int:
        """Number of hidden layers, and of RBMs."""
        return len(self.rbms)

    @property
    def n_visible(self) -> int:
        """Number of visible units."""
        return self.sizes[0]

    @property
    def top(self) -> RBM:
        """The last RBM, the undirected one."""
        return self.layer(self.n_layers - 1)

    def layer(self, index: int) -> RBM:
        """RBM number `index`, from 0, the lowest."""
        return cast("RBM", self.rbms[index])

    def _up(self, index: int) -> Recognition:
        return cast("Recognition", self.recognition[index])

    # -- up and down --------------------------------------------------------------------------------------------------

    def _way_up(self, index: int) -> tuple[Tensor, Tensor]:
        """W and bias of the way up from layer `index`."""
        rbm = self.layer(index)
        if index == self.n_layers - 1 or not bool(self.untied):
            return rbm.W, rbm.hbias
        up = self._up(index)
        return up.W, up.bias

    def _logits_up(self, x: Tensor, index: int) -> Tensor:
        W, bias = self._way_up(index)
        return torch.addmm(bias, x, W) if x.ndim == 2 else F.linear(x, W.T, bias)

    def _logits_down(self, h: Tensor, index: int) -> Tensor:
        rbm = self.layer(index)
        return F.linear(h, rbm.W, rbm.vbias)

    def transform(self, v: Tensor, n_layers: int | None = None) -> Tensor:
        """The means of a hidden layer, each layer's computed from the means below: features of the data.

        Args:
            v: `[..., n_visible]`, 0/1 or probabilities in between.
            n_layers: how many layers up; all by default, 0 for v itself.

        Returns:
            `[..., n_hidden]` of that layer, differentiable.
        """
        x = self._visible(v)
        for i in range(self._depth(n_layers)):
            x = torch.sigmoid(self._logits_up(x, i))
        return x

    @torch.no_grad()
    def sample_up(self, v: Tensor, n_layers: int | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """States of a hidden layer, each layer's drawn from q given the states below; arguments as of `transform`."""
        x = drawn(self._visible(v), generator)
        for i in range(self._depth(n_layers)):
            x = drawn(torch.sigmoid(self._logits_up(x, i)), generator)
        return x

    @torch.no_grad()
    def sample_down(self, h: Tensor, *, means: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Visible states given states h of the top RBM's lower layer, drawn layer by layer on the directed way down.

        Args:
            h: `[..., n]`, 0 or 1.
            means: return the probabilities of the visible units, from which their states would be drawn.
            generator: source of randomness; the default generator otherwise.
        """
        x = binary("h", h, self.sizes[-2], self.top.W.dtype)
        for i in reversed(range(self.n_layers - 1)):
            p = torch.sigmoid(self._logits_down(x, i))
            x = p if means and i == 0 else drawn(p, generator)
        return x

    @torch.no_grad()
    def sample(
        self,
        n_samples: int,
        n_steps: int = 1000,
        *,
        start: Tensor | None = None,
        clamp: Tensor | None = None,
        means: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw visible states: n_steps sweeps of the top RBM, then the directed way down.

        Args:
            n_samples: number of chains, and so of samples.
            n_steps: sweeps of the top RBM.
            start: 0/1 states of its lower layer `[n_samples, n]` to start from; see `RBM.sample`.
            clamp: boolean mask of units of that layer that keep the value they have in `start`.
            means: return the probabilities of the visible units instead (of one layer: of the last sweep).
            generator: source of randomness; the default generator otherwise.

        Returns:
            `[n_samples, n_visible]`.
        """
        h = self.top.sample(n_samples, n_steps, start=start, clamp=clamp, generator=generator)
        if self.n_layers == 1 and means:
            return self.top.visible_probs(self.top.sample_hidden(h, generator=generator))
        return self.sample_down(h, means=means, generator=generator)

    def reconstruct(self, v: Tensor, n_layers: int | None = None) -> Tensor:
        """Means up through n_layers (all by default) and down again: probabilities `[..., n_visible]`."""
        x = self.transform(v, n_layers)
        for i in reversed(range(self._depth(n_layers))):
            x = torch.sigmoid(self._logits_down(x, i))
        return x

    # -- greedy training ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def init_layer(self, layer: int, v: Tensor) -> None:
        """Prepare RBM number `layer` for data that the layers below are trained for.

        Where it has as many hidden units as the one below has visible ones, it starts as that one turned over, and the
        network models v exactly as before (Hinton et al. 2006, section 4): from there on the bound can only gain.
        Otherwise its visible biases start at the means of its data, as in `RBM.init_vbias`.
        """
        rbm = self._rbm(layer)
        if layer > 0 and self.sizes[layer + 1] == self.sizes[layer - 1]:
            below = self.layer(layer - 1)
            for parameter, value in ((rbm.W, below.W.T), (rbm.vbias, below.hbias), (rbm.hbias, below.vbias)):
                parameter.copy_(value)
        else:
            rbm.init_vbias(self.transform(v, layer))

    def layer_loss(
        self, v: Tensor, layer: int, k: int = 1, *, persistent: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """The loss of CD-k (or PCD-k) of one RBM on states of its layer, drawn on the way up from v.

        Its gradient is that of this RBM alone. See `RBM.cd_loss`, `RBM.pcd_loss`.
        """
        rbm, x = self._rbm(layer), self._below(v, layer, generator)
        return (rbm.pcd_loss if persistent else rbm.cd_loss)(x, k, generator=generator)

    def layer_backward(
        self, v: Tensor, layer: int, k: int = 1, *, persistent: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """Do what `layer_loss(...).backward()` does to cleared gradients, faster: see `RBM.cd_backward`.

        Returns:
            The model's states.
        """
        rbm, x = self._rbm(layer), self._below(v, layer, generator)
        return (rbm.pcd_backward if persistent else rbm.cd_backward)(x, k, generator=generator)

    def fit(
        self,
        v: Tensor,
        *,
        epochs: int = 10,
        fine_tune: int = 0,
        batch_size: int = 64,
        lr: float = 0.1,
        k: int = 1,
        persistent: bool = False,
        momentum: float = 0.5,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Train the layers one after another by contrastive divergence, then all by the up-down algorithm.

        Args:
            v: data `[N, n_visible]`, 0/1 or probabilities in between.
            epochs: passes over the data for each layer.
            fine_tune: passes of up-down fine-tuning after that, at a tenth of the learning rate.
            batch_size: rows an update.
            lr: learning rate of SGD.
            k: Gibbs sweeps an update.
            persistent: PCD instead of CD, for each layer and the top RBM while fine-tuning.
            momentum: of SGD.
            generator: of the batches and the chains; the default generator otherwise.
            progress: called after each pass with "layer 1", ..., "up-down", its number and their count.

        Raises:
            NonFiniteError: a parameter became NaN or infinite; names the pass and the parameter.

        Example:
            >>> dbn = DeepBeliefNetwork(16, [8, 4])
            >>> dbn.fit(torch.bernoulli(torch.full((64, 16), 0.5)), epochs=1, fine_tune=1)
        """
        rows = self._visible(v).reshape(-1, self.n_visible)
        integer("batch_size", batch_size)
        for layer in range(self.n_layers):
            self.init_layer(layer, rows)
            rbm = self.layer(layer)
            sgd = torch.optim.SGD(rbm.parameters(), lr=lr, momentum=momentum)
            for epoch in range(integer("epochs", epochs, at_least=0)):
                for batch in _batches(rows, batch_size, generator):
                    self.layer_backward(batch, layer, k, persistent=persistent, generator=generator)
                    sgd.step()
                rbm.check_finite(step=epoch + 1)
                if progress is not None:
                    progress(f"layer {layer + 1}", epoch + 1, epochs)
            sgd.zero_grad()
        if integer("fine_tune", fine_tune, at_least=0) == 0:
            return
        self.untie()
        sgd = torch.optim.SGD(self.parameters(), lr=lr / 10, momentum=momentum)
        for epoch in range(fine_tune):
            for batch in _batches(rows, batch_size, generator):
                self.up_down_backward(batch, k, persistent=persistent, generator=generator)
                sgd.step()
            self.check_finite(step=epoch + 1)
            if progress is not None:
                progress("up-down", epoch + 1, fine_tune)
        sgd.zero_grad()

    # -- fine-tuning --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def untie(self) -> None:
        """Give the ways up weights of their own, the present ones; does nothing where they have them already."""
        if bool(self.untied):
            return
        for i in range(self.n_layers - 1):
            rbm, up = self.layer(i), self._up(i)
            up.W.copy_(rbm.W)
            up.bias.copy_(rbm.hbias)
        self.untied.fill_(True)

    def up_down_loss(
        self, v: Tensor, k: int = 1, *, persistent: bool = False, generator: torch.Generator | None = None
    ) -> Tensor:
        """The loss of the up-down algorithm, contrastive wake-sleep, whose gradient reaches all layers.

        Wake: states on the way up from v teach the ways down, by -log p(x | h), and the top RBM, by CD-k (or PCD-k).
        Sleep: states on the way down from the top RBM's chains teach the ways up, by -log q(h | x). Unties the ways up
        and down.

        Source:
            Hinton, Osindero, Teh 2006, section 5 and appendix B.
        """
        self.untie()
        wake = self._wake(v, generator)
        if persistent:
            loss = self.top.pcd_loss(wake[-1], k, generator=generator)
            fantasy = self.top.chains.clone()
        else:
            fantasy = self.top.gibbs(wake[-1], k, generator=generator)[0]
            loss = self.top.contrastive_loss(wake[-1], fantasy)
        sleep = self._sleep(fantasy, generator)
        for i in range(self.n_layers - 1):
            loss = loss + _cross_entropy(self._logits_down(wake[i + 1], i), wake[i])
            loss = loss + _cross_entropy(self._logits_up(sleep[i], i), sleep[i + 1])
        return loss

    @torch.no_grad()
    def up_down_backward(
        self, v: Tensor, k: int = 1, *, persistent: bool = False, generator: torch.Generator | None = None
    ) -> None:
        """Do what `up_down_loss(...).backward()` does to cleared gradients, without a graph and without the loss.

        The gradients' memory is used again from call to call, so `zero_grad` is not needed.
        """
        self.untie()
        wake = self._wake(v, generator)
        top_backward = self.top.pcd_backward if persistent else self.top.cd_backward
        sleep = self._sleep(top_backward(wake[-1], k, generator=generator), generator)
        for i in range(self.n_layers - 1):
            rbm, up = self.layer(i), self._up(i)
            error = torch.sigmoid(self._logits_down(wake[i + 1], i)).sub_(wake[i]).div_(len(wake[i]))
            _put(rbm.W, error.T @ wake[i + 1])
            _put(rbm.vbias, error.sum(0))
            error = torch.sigmoid(self._logits_up(sleep[i], i)).sub_(sleep[i + 1]).div_(len(sleep[i]))
            minus = error.new_full((len(error),), -1.0)
            _put(up.W, state_product(sleep[i], error, scale=minus))
            _put(up.bias, error.sum(0))

    @torch.no_grad()
    def _wake(self, v: Tensor, generator: torch.Generator | None) -> list[Tensor]:
        """States of all layers but the highest, drawn on the way up."""
        states = [drawn(self._visible(v), generator).reshape(-1, self.n_visible)]
        for i in range(self.n_layers - 1):
            W, bias = self._way_up(i)
            states.append(drawn(state_product(states[-1], W.detach(), init=bias.detach()).sigmoid_(), generator))
        return states

    @torch.no_grad()
    def _sleep(self, h: Tensor, generator: torch.Generator | None) -> list[Tensor]:
        """States of the same layers, drawn on the way down from h."""
        states = [h]
        for i in reversed(range(self.n_layers - 1)):
            states.insert(0, drawn(torch.sigmoid(self._logits_down(states[0], i)), generator))
        return states

    # -- likelihood and classification --------------------------------------------------------------------------------

    @torch.no_grad()
    def variational_bound(
        self,
        v: Tensor,
        n_samples: int = 10,
        *,
        log_z: float | Tensor | None = None,
        importance_weighted: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        r"""A lower bound on log p(v), estimated without bias.

        .. math:: \log p(v) \ge E_q[\log p(v, h^1, ..., h^{L-1}) - \log q(h^1, ..., h^{L-1} | v)]

        with q the way up; the mean over n_samples draws. The nearer q is to the posterior, the smaller is their
        scatter, and the gap. Of a network of one layer it is log p(v) itself.

        Args:
            v: visible states `[..., n_visible]`, 0 or 1.
            n_samples: draws of the hidden states.
            log_z: log Z of the top RBM; exact by default, for a small one. `ais_log_z(dbn.top)` estimates others.
            importance_weighted: log of the mean weight p / q of the draws instead of their mean logarithm: a bound too,
                on average, and a tighter one the more draws there are.
            generator: source of randomness; the default generator otherwise.

        Returns:
            `[...]`, in nats.

        Raises:
            ValueError: v is not 0/1, or the top RBM is too large for its exact log Z and none is given.

        Source:
            Hinton, Osindero, Teh 2006, section 4; Salakhutdinov and Murray 2008; Burda, Grosse, Salakhutdinov 2016.
        """
        v = binary("v", v, self.n_visible, self.top.W.dtype)
        integer("n_samples", n_samples)
        if log_z is None:
            log_z = self.top.log_partition()
        weights = []
        for _ in range(n_samples):
            x, weight = v, torch.zeros(v.shape[:-1], dtype=torch.float64, device=v.device)
            for i in range(self.n_layers - 1):
                logits = self._logits_up(x, i)
                h = drawn(torch.sigmoid(logits), generator)
                weight += (_log_prob(self._logits_down(h, i), x) - _log_prob(logits, h)).double()
                x = h
            top = self.top
            weights.append(weight - ops.rbm_free_energy(x, top.W, top.vbias, top.hbias).double())
        each = torch.stack(weights)
        value = torch.logsumexp(each, 0) - math.log(n_samples) if importance_weighted else each.mean(0)
        return (value - torch.as_tensor(log_z, dtype=torch.float64, device=v.device)).to(v.dtype)

    @torch.no_grad()
    def to_classifier(self, n_classes: int, *, generator: torch.Generator | None = None) -> nn.Sequential:
        """A feed-forward network that begins as the way up: Linear and Sigmoid for each layer, and a Linear to classes.

        To be trained by cross-entropy (it gives logits). Its weights are copies; the last layer's are small and random.

        Args:
            n_classes: number of outputs.
            generator: draws the last layer's weights; the default generator otherwise.

        Example:
            >>> DeepBeliefNetwork(64, [50, 20]).to_classifier(10)(torch.rand(3, 64)).shape
            torch.Size([3, 10])
        """
        parts: list[nn.Module] = []
        for i in range(self.n_layers):
            W, bias = self._way_up(i)
            linear = nn.Linear(W.shape[0], W.shape[1], device=W.device, dtype=W.dtype)
            linear.weight.copy_(W.T)
            linear.bias.copy_(bias)
            parts += [linear, nn.Sigmoid()]
        last = nn.Linear(self.sizes[-1], integer("n_classes", n_classes), device=W.device, dtype=W.dtype)
        last.weight.normal_(0, 0.01, generator=generator)
        nn.init.zeros_(last.bias)
        return nn.Sequential(*parts, last)

    def check_finite(self, step: int | None = None) -> None:
        """Raise `NonFiniteError`, naming the step and the parameter, where a parameter is NaN or infinite."""
        check_finite(self, step=step)

    # -- internals ----------------------------------------------------------------------------------------------------

    def _visible(self, v: Tensor) -> Tensor:
        return probabilities("v", v, self.n_visible, self.top.W.dtype)

    def _rbm(self, layer: int) -> RBM:
        return self.layer(_at_most("layer", layer, self.n_layers - 1))

    def _depth(self, n_layers: int | None) -> int:
        return self.n_layers if n_layers is None else _at_most("n_layers", n_layers, self.n_layers)

    def _below(self, v: Tensor, layer: int, generator: torch.Generator | None) -> Tensor:
        """What RBM number `layer` learns from: v itself, or states."""
        return self._visible(v) if layer == 0 else self.sample_up(v, layer, generator=generator)


def _at_most(name: str, value: int, most: int) -> int:
    if integer(name, value, at_least=0) > most:
        raise ValueError(f"{name}: got {value}, want at most {most}")
    return value


def _batches(rows: Tensor, size: int, generator: torch.Generator | None) -> Sequence[Tensor]:
    at = rows.device if generator is None else generator.device
    order = torch.randperm(len(rows), generator=generator, device=at).to(rows.device)
    return [rows.index_select(0, part) for part in order.split(size)]


def _cross_entropy(logits: Tensor, x: Tensor) -> Tensor:
    """-log p(x), the mean over rows."""
    return F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)


def _log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """Of independent units x given their log-odds, `[...]`."""
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)


def _put(parameter: Tensor, grad: Tensor) -> None:
    if not parameter.requires_grad:
        return
    if parameter.grad is None:
        parameter.grad = grad
    else:
        parameter.grad.copy_(grad)
