"""The general Boltzmann machine: every unit coupled to every other, some of them hidden."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genfast._arguments import integer
from genfast._finite import check_finite
from genfast._tracing import has_values
from genfast.boltzmann import _dense
from genfast.boltzmann._dense import Values, from_bits, log_odds, log_sum, moments, to_bits
from genfast.boltzmann._dense_chains import DenseChains
from genfast.boltzmann._dense_path import DensePath, base_fields
from genfast.boltzmann._states import drawn

ClampedPhase = Literal["gibbs", "mean_field"]


class BoltzmannMachine(DenseChains):
    r"""A fully connected Boltzmann machine of n = n_visible + n_hidden units, the visible ones first.

    .. math::
        E(s) = -\tfrac12 s^T J s - c \cdot s, \qquad p(s) = e^{-E(s) / T} / Z

    with J `[n, n]` symmetric with a zero diagonal, `bias` (c) `[n]`, and units that are 0 or 1 (`values="01"`) or -1 or
    1 (`values="pm1"`). Unit i given the others is in its upper state with probability sigmoid((J s + c)_i / T) for 0/1
    units, and sigmoid(2 (J s + c)_i / T) for -1/1 units. States s = (v, h) are `[..., n]`, visible ones v are
    `[..., n_visible]`; p(v) sums over h.

    **Parameters.** `bias`, and `couplings` `[n, n]` of which the strict upper triangle counts: the property `J` is that
    and its mirror image, so it is symmetric under every optimiser. The rest of `couplings` has gradient 0 and starts at
    0. The gradient of -log p(v) in the pair (i, j) is (<s_i s_j> of the model - <s_i s_j> with v clamped) / T, each
    pair once. `machine.couplings.copy_(J)` (under `torch.no_grad`) sets the couplings, see also `from_couplings`.

    **Training** minimises `pcd_loss` or `cd_loss` (a clamped phase, which samples the hidden units given the data, and
    a free one), `pseudo_likelihood_loss`, or, up to 25 units, `-log_prob(v).mean()` itself, which is exact.

    Args:
        n_visible: number of visible units.
        n_hidden: number of hidden units.
        values: "01" or "pm1".
        temperature: T > 0, of the distribution that the machine is; methods that sample take another one.
        init_std: standard deviation of the normal that the couplings start from (biases start at 0).
        generator: draws the initial couplings; the default generator otherwise.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: a size is not an integer >= 1 (n_hidden: >= 0), values is another word, T <= 0, or init_std < 0.

    Source:
        Ackley, Hinton & Sejnowski 1985, "A learning algorithm for Boltzmann machines"; Besag 1975 for the
        pseudo-likelihood.

    Example:
        >>> machine = BoltzmannMachine(64, 16)
        >>> v = torch.bernoulli(torch.full((32, 64), 0.3))
        >>> optimizer = torch.optim.SGD(machine.parameters(), lr=0.05)
        >>> machine.pcd_loss(v).backward()
        >>> optimizer.step()
        >>> known = torch.arange(64) < 32
        >>> machine.complete(v, known, n_steps=50).shape
        torch.Size([32, 64])
    """

    @classmethod
    def from_couplings(
        cls, J: Tensor, bias: Tensor, *, n_hidden: int = 0, values: Values = "01", temperature: float = 1.0
    ) -> "BoltzmannMachine":
        """The machine with these couplings and biases (copies), of which the last n_hidden units are hidden.

        Args:
            J: `[n, n]`, symmetric, zero on the diagonal.
            bias: `[n]`, of the same dtype and device.
            n_hidden: number of hidden units, fewer than n.
            values: "01" or "pm1".
            temperature: T > 0.

        Raises:
            TypeError: J or bias is no floating-point tensor.
            ValueError: J is not square, not symmetric, has a diagonal, or something is not finite or does not fit.
        """
        J, bias = _dense.check_couplings(J, bias)
        if integer("n_hidden", n_hidden, at_least=0) >= len(bias):
            raise ValueError(f"n_hidden: got {n_hidden}, want fewer than the {len(bias)} units of J")
        machine = cls(
            len(bias) - n_hidden, n_hidden, values=values, temperature=temperature, device=J.device, dtype=J.dtype
        )
        with torch.no_grad():
            machine.couplings.copy_(J.triu(1))
            machine.bias.copy_(bias)
        return machine

    # -- the pseudo-likelihood ----------------------------------------------------------------------------------------

    def pseudo_likelihood(
        self, v: Tensor, *, exact: bool = True, n_sweeps: int = 100, generator: torch.Generator | None = None
    ) -> Tensor:
        """The pseudo-log-likelihood sum_i log p(v_i | v_-i) of v `[..., n_visible]`; returns `[...]`, differentiable.

        Without hidden units one product gives the fields of all units. Up to 25 hidden ones are summed out for v and
        for v with each unit flipped.

        Args:
            v: visible states.
            exact: False samples the hidden units instead of summing them out: one random unit a row stands for all (its
                term times n_visible), p(v_i | v_-i) is the mean of p(v_i | v_-i, h) over sweeps of h and v_i, and there
                is no gradient. log p is then biased down by half of the mean's relative variance.
            n_sweeps: number of these sweeps, of which the second half counts.
            generator: draws the units and the sweeps.

        Raises:
            ValueError: v is not made of states, or there are more than 25 hidden units to sum out.

        Source:
            Besag 1975, "Statistical analysis of non-lattice data".
        """
        v = self._checked("v", v, self.n_visible)
        if not exact and self.n_hidden:
            return self._sampled_pseudo_likelihood(v, integer("n_sweeps", n_sweeps), generator)
        J, bias, nv = *self._scaled(), self.n_visible
        signs = 2 * to_bits(v, self.values) - 1
        fields = _dense.matmul(v, J[:nv])
        odds = log_odds(fields[..., :nv] + bias[:nv], self.values)
        if not self.n_hidden:
            return F.logsigmoid(signs * odds).sum(-1)
        self._enumerable("pseudo_likelihood", self.n_hidden, "hidden units", "exact=False, which samples them")
        seen = (fields[..., nv:] + bias[nv:]).reshape(-1, 1, self.n_hidden)
        turned = signs * (1 if self.values == "01" else 2)  # v_i - (v_i flipped)
        others = seen - turned.reshape(-1, nv, 1) * J[:nv, nv:]
        both = log_sum(J[nv:, nv:], torch.cat([seen, others], 1).flatten(0, 1), self.values)
        both = both.reshape(*v.shape[:-1], nv + 1).to(odds.dtype)
        return F.logsigmoid(signs * odds + both[..., :1] - both[..., 1:]).sum(-1)

    def pseudo_likelihood_loss(self, v: Tensor) -> Tensor:
        """-mean of `pseudo_likelihood(v)`, to be minimised: consistent, and without any sampling.

        Raises:
            ValueError: v has no rows or is not made of states, or there are more than 25 hidden units.
            NonFiniteError: the loss or a parameter is not finite (where `nonfinite_check` is set).
        """
        if v.numel() == 0:
            raise ValueError("v: got no rows, want at least one")
        return self._watched(-self.pseudo_likelihood(v).mean())

    @torch.no_grad()
    def _sampled_pseudo_likelihood(self, v: Tensor, n_sweeps: int, generator: torch.Generator | None) -> Tensor:
        rows = v.reshape(-1, self.n_visible)
        at = v.device if generator is None else generator.device
        unit = torch.randint(self.n_visible, (len(rows), 1), device=at, generator=generator).to(v.device)
        upper = to_bits(rows.gather(1, unit), self.values)[:, 0] == 1
        clamp = torch.ones_like(rows, dtype=torch.bool).scatter(1, unit, False)
        clamp = self._mask("clamp", clamp, (rows.shape,))
        s, p = self._with_hidden(rows, generator), torch.zeros(len(rows), dtype=torch.float64, device=v.device)
        with self._couplings_now() as J:
            J_of, bias_of = (x[unit[:, 0]].to(v.dtype) / self.temperature for x in (J, self.bias))
            for step in range(n_sweeps):
                s = self._sweeps(s, J=J, clamp=clamp, generator=generator)
                if step >= n_sweeps // 2:
                    odds = log_odds((s * J_of).sum(1) + bias_of, self.values).double()
                    p += torch.sigmoid(torch.where(upper, odds, -odds))
        terms = self.n_visible * (p / (n_sweeps - n_sweeps // 2)).log()
        return terms.reshape(v.shape[:-1]).to(v.dtype)

    # -- training -----------------------------------------------------------------------------------------------------

    @property
    def n_chains(self) -> int:
        """Number of persistent chains; 0 before the first `pcd_loss` or `reset_chains`."""
        return self.chains.shape[0]

    @torch.no_grad()
    def reset_chains(self, n_chains: int, *, generator: torch.Generator | None = None) -> None:
        """Start n_chains new persistent chains from independent units in the fields of their biases."""
        self.chains = self.initial_states(n_chains, generator=generator)

    @torch.no_grad()
    def init_from_data(self, v: Tensor) -> None:
        """Set the biases of visible units to the rates of data v `[N, n_visible]`: the best independent model.

        Rates are kept 1 / (N + 1) away from 0 and 1.
        """
        odds = base_fields(
            self._checked("v", v, self.n_visible, means=True).reshape(-1, self.n_visible),
            self.n_visible,
            self.bias,
            self.values,
        )
        self.bias[: self.n_visible] = (self.temperature * odds[: self.n_visible]).to(self.bias.dtype)

    @torch.no_grad()
    def mean_field(self, v: Tensor, n_steps: int = 100, *, tolerance: float = 1e-4, damping: float = 0.5) -> Tensor:
        """The mean-field expectations of the hidden units given v: `[..., n_visible]` to `[..., n_hidden]`.

        The fixed point of m = E[h | fields J m + c], approached by damped steps until none moves by more than
        `tolerance`, or n_steps are done. Of several fixed points it is the one that damped steps from
        the fields of v alone lead to. It has no gradient.

        Args:
            v: visible states, or expectations.
            n_steps: most steps.
            tolerance: on the expectations.
            damping: how much of the old expectations a step keeps, in [0, 1).
        """
        integer("n_steps", n_steps)
        if not 0 <= damping < 1:
            raise ValueError(f"damping: got {damping!r}, want a number in [0, 1)")
        J, bias, nv = *self._scaled(), self.n_visible
        v = self._checked("v", v, nv, means=True)
        given = _dense.matmul(v, J[:nv, nv:]) + bias[nv:]
        m = from_bits(torch.sigmoid(log_odds(given, self.values)), self.values)
        for _ in range(n_steps):
            fields = given + _dense.matmul(m, J[nv:, nv:])
            new = torch.lerp(from_bits(torch.sigmoid(log_odds(fields, self.values)), self.values), m, damping)
            moved, m = (new - m).abs(), new
            if moved.numel() == 0 or float(moved.max()) <= tolerance:
                break
        return m

    def variational_free_energy(self, v: Tensor, means: Tensor | None = None) -> Tensor:
        """E(v, m) / T - H(m), with the entropy H of independent hidden units of these means: at least F(v); `[...]`.

        -variational_free_energy(v) - log Z is a lower bound on log p(v), for machines of any size; `log_likelihood`
        takes it where there are more than 25 hidden units. Differentiable in the parameters with the means held, which
        at the mean field is the whole gradient.

        Args:
            v: visible states `[..., n_visible]`, or expectations.
            means: of the hidden units, `[..., n_hidden]`; by default those of `mean_field(v)`.
        """
        v = self._checked("v", v, self.n_visible, means=True)
        m = self.mean_field(v) if means is None else self._checked("means", means, self.n_hidden, means=True)
        p = to_bits(m, self.values)
        entropy = (torch.special.entr(p) + torch.special.entr(1 - p)).sum(-1)
        bound: Tensor = self.energy(torch.cat([v, m], -1)) / self.temperature - entropy
        return bound

    @torch.no_grad()
    def sample_hidden(
        self, v: Tensor, n_steps: int = 10, *, h: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Sample the hidden units given v: n_steps sweeps with the visible units clamped.

        Args:
            v: visible states `[N, n_visible]`; expectations are drawn from.
            n_steps: sweeps.
            h: hidden states `[N, n_hidden]` to start from; by default units in the fields of their biases.
            generator: source of randomness; the default generator otherwise.

        Returns:
            States of all units `[N, n]`, v first.
        """
        with self._couplings_now() as J:
            return self._given(v, n_steps, h, J, generator)

    def _given(self, v: Tensor, n_steps: int, h: Tensor | None, J: Tensor, generator: torch.Generator | None) -> Tensor:
        """`sample_hidden` with the couplings J."""
        v = self._checked("v", v, self.n_visible, means=True).reshape(-1, self.n_visible).to(self.bias.dtype)
        v = self._drawn(v, generator)
        if not self.n_hidden:
            return v
        if h is None:
            s = self._with_hidden(v, generator)
        else:
            h = self._checked("h", h, self.n_hidden)
            if h.shape != (len(v), self.n_hidden):
                raise ValueError(f"h: got shape {list(h.shape)}, want [N, n_hidden] = {[len(v), self.n_hidden]}")
            s = torch.cat([v, h.to(v.dtype)], 1)
        clamp = torch.arange(self.n_units, device=v.device) < self.n_visible
        return self._sweeps(s, J=J, n_sweeps=n_steps, clamp=clamp, generator=generator, first_chain=self.first_chain)

    def contrastive_loss(self, s_data: Tensor, s_model: Tensor) -> Tensor:
        """The loss (mean E(s_data) - mean E(s_model)) / T over states of all units, `[..., n]`, held constant.

        Its gradient in the pair (i, j) is (<s_i s_j>_model - <s_i s_j>_data) / T, in a bias (<s_i>_model -
        <s_i>_data) / T: that of -log p(v) where s_data are samples with v clamped and s_model samples of the machine.
        The value itself is not the likelihood and need not fall. One product over the rows of both gives the gradient,
        and the value follows from it, for the energy is linear in the parameters.

        Raises:
            ValueError: a shape does not fit, there are no rows, or values are out of the states' range.
            NonFiniteError: the loss or a parameter is not finite (where `nonfinite_check` is set).
        """
        data, model = (
            self._checked(name, s, self.n_units, means=True).reshape(-1, self.n_units)
            for name, s in (("s_data", s_data), ("s_model", s_model))
        )
        of_couplings, of_bias = self._statistics(data, model)
        loss = (self.couplings.to(data.dtype) * of_couplings).sum() + (self.bias.to(data.dtype) * of_bias).sum()
        return self._watched(loss)

    def pcd_loss(
        self,
        v: Tensor,
        k: int = 1,
        *,
        k_data: int = 10,
        h: Tensor | None = None,
        clamped: ClampedPhase = "gibbs",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The loss of persistent contrastive divergence: clamped phase against persistent free chains.

        The chains of the buffer `chains` run k sweeps and are kept for the next call. The first call starts as many
        as v has rows; `reset_chains` chooses another number.

        Args:
            v: data `[N, n_visible]`. Expectations enter the statistics as they are; for hidden units states are drawn.
            k: sweeps of the free chains.
            k_data: sweeps of the hidden units with v clamped.
            h: hidden states `[N, n_hidden]` that the clamped phase starts from, and which it leaves its last states
                in: persistent ones, if you keep those of each row of the data.
            clamped: "gibbs", or "mean_field" for expectations (see `mean_field`) instead of samples.
            generator: source of randomness; the default generator otherwise.

        Returns:
            A scalar; `backward()` puts the gradient on `couplings` and `bias`. See `contrastive_loss`.

        Source:
            Tieleman 2008, "Training restricted Boltzmann machines using approximations to the likelihood gradient";
            Salakhutdinov & Hinton 2009, "Deep Boltzmann machines", for the mean-field phase.
        """
        data, model = self._phases(True, v, k, k_data=k_data, h=h, clamped=clamped, generator=generator)
        loss = self.contrastive_loss(data, model)
        self.chains.copy_(model)
        return loss

    def cd_loss(
        self,
        v: Tensor,
        k: int = 1,
        *,
        k_data: int = 10,
        h: Tensor | None = None,
        clamped: ClampedPhase = "gibbs",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The loss of contrastive divergence, CD-k: the free phase goes k sweeps on from the clamped one.

        Arguments and result are those of `pcd_loss`.

        Source:
            Hinton 2002, "Training products of experts by minimizing contrastive divergence".
        """
        return self.contrastive_loss(
            *self._phases(False, v, k, k_data=k_data, h=h, clamped=clamped, generator=generator)
        )

    def pcd_backward(self, v: Tensor, k: int = 1, **options: Any) -> tuple[Tensor, Tensor]:
        """Do what `pcd_loss(v, k, ...).backward()` does to cleared gradients, without a graph and without the loss.

        The gradients' memory is used again from call to call, so `zero_grad` is not needed.

        Returns:
            The states of both phases, for `contrastive_loss` where the loss is wanted.

        Raises:
            RuntimeError: a parameter is computed from others (`torch.nn.utils.parametrize`), which it cannot reach.

        Example:
            >>> machine = BoltzmannMachine(64)
            >>> optimizer = torch.optim.SGD(machine.parameters(), lr=0.05)
            >>> for batch in torch.bernoulli(torch.full((320, 64), 0.3)).split(32):
            ...     _ = machine.pcd_backward(batch)
            ...     optimizer.step()
        """
        return self._backward(True, v, k, **options)

    def cd_backward(self, v: Tensor, k: int = 1, **options: Any) -> tuple[Tensor, Tensor]:
        """Do what `cd_loss(v, k, ...).backward()` does to cleared gradients. See `pcd_backward`."""
        return self._backward(False, v, k, **options)

    def check_finite(self, step: int | None = None) -> None:
        """Raise `NonFiniteError`, naming the step and the parameter, where a parameter is NaN or infinite."""
        check_finite(self, step=step)

    def annealing_path(self, base: Tensor | None = None) -> DensePath:
        """The path of annealed importance sampling from independent units to the machine, over all units.

        Args:
            base: data `[N, n_visible]`, whose rates the independent units have; or their log-odds `[n_visible]`; or
                None, fair coins.
        """
        with torch.no_grad():
            J, bias = (x.clone() for x in self._scaled())
        return DensePath(J, bias, base_fields(base, self.n_visible, bias, self.values), self.n_visible, self.values)

    # -- internals ----------------------------------------------------------------------------------------------------

    def _drawn(self, s: Tensor, generator: torch.Generator | None) -> Tensor:
        """States drawn from expectations; states as they are."""
        bits = to_bits(s, self.values)
        if has_values(s) and s.device.type == "cpu" and bool(((bits == 0) | (bits == 1)).all()):
            return s
        return from_bits(drawn(bits, generator), self.values)

    @torch.no_grad()
    def _phases(
        self,
        persistent: bool,
        v: Tensor,
        k: int,
        *,
        k_data: int = 10,
        h: Tensor | None = None,
        clamped: ClampedPhase = "gibbs",
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Rows of all units with v clamped, samples or expectations; and the states of the free phase."""
        if clamped not in ("gibbs", "mean_field"):
            raise ValueError(f"clamped: got {clamped!r}, want 'gibbs' or 'mean_field'")
        if h is not None and (not self.n_hidden or clamped == "mean_field"):
            why = "the machine has no hidden units" if not self.n_hidden else "the mean field starts from none"
            raise ValueError(f"h: got hidden states, but {why}")
        integer("k", k)
        integer("k_data", k_data)
        data = self._checked("v", v, self.n_visible, means=True).reshape(-1, self.n_visible).to(self.bias.dtype)
        if self.n_hidden and clamped == "mean_field":
            data = torch.cat([data, self.mean_field(data).to(data.dtype)], 1)
        with self._couplings_now() as J:
            if self.n_hidden and clamped == "gibbs":
                data = self._given(data, k_data, h, J, generator)
            if persistent and self.n_chains == 0:
                self.reset_chains(len(data), generator=generator)
            start = self.chains if persistent else self._drawn(data, generator)
            model = self._sweeps(start, J=J, n_sweeps=k, generator=generator, first_chain=self.first_chain)
        if h is not None:
            h.copy_(data[:, self.n_visible :])
        return data, model

    def _statistics(self, data: Tensor, model: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The gradients of `contrastive_loss` in couplings and bias."""
        n, m = len(data), len(model)
        if n == 0 or m == 0:
            raise ValueError(f"s_data, s_model: got {n} and {m} rows, want at least one of each")
        weights = data.new_full((n + m,), 1 / (n * self.temperature))
        weights[n:] = -1 / (m * self.temperature)
        rows = torch.cat([data, model])
        return moments(rows, weights, out), -_dense.matmul(weights, rows)

    @torch.no_grad()
    def _backward(self, persistent: bool, v: Tensor, k: int, **options: Any) -> tuple[Tensor, Tensor]:
        parameters = [p for p in map(self._parameters.get, ("couplings", "bias")) if p is not None and p.is_leaf]
        if len(parameters) < 2:
            raise RuntimeError("a parameter is computed from others (parametrized): use cd_loss or pcd_loss")
        data, model = self._phases(persistent, v, k, **options)
        old, wide = self.couplings.grad, self._dtype()
        room = old if old is not None and old.dtype == wide and old.is_contiguous() else None
        for p, grad in zip(parameters, self._statistics(data.to(wide), model.to(wide), room), strict=True):
            if p.requires_grad:
                p.grad = grad.to(p.dtype)
        if persistent:
            self.chains.copy_(model)
        return data, model

    def _watched(self, loss: Tensor) -> Tensor:
        """The loss, checked where `nonfinite_check` is set."""
        self._n_losses += 1
        if self.nonfinite_check and has_values(loss):
            value = loss.item()
            if not math.isfinite(value):
                check_finite(self, step=self._n_losses, loss=value)
        return loss

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(prefix + "chains")
        if isinstance(saved, Tensor) and saved.ndim == 2 and saved.shape[1] == self.n_units:
            self.chains = self.chains.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
