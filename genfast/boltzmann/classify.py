"""Classification with a restricted Boltzmann machine that has seen the labels."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from genfast._arguments import integer, number, real
from genfast.boltzmann._contrastive import product
from genfast.boltzmann.rbm import RBM
from genfast.boltzmann.units import Binary, Layer, Partitioned, Softmax


class RBMClassifier(RBM):
    r"""An RBM over data and label together, whose conditional p(y | v) is exact.

    The visible layer is that of the data with a softmax unit of `n_classes` beside it. As one class is on, the sum over
    the hidden units is closed:

    .. math::
        \log p(y | v) = d_y + A_h(b + v W + U_y) - \log \sum_{y'} \exp(d_{y'} + A_h(b + v W + U_{y'}))

    with d the biases and U `[n_classes, n_hidden]` the weights of the label, the last rows of `vbias` and `W`, and A_h
    the hidden layer's log-normaliser (the sum of softplus for 0/1 units): one product for the data and sums over the
    classes.

    Generative training is that of any RBM, on `join(v, y)`; `discriminative_loss` is the mean of -log p(y | v), and
    `hybrid_loss` adds a multiple of the generative loss to it. The chains, `sample` and `inpaint` run over data and
    labels: `split` takes them apart, and inpainting the data draws from a class.

    Args:
        n_visible: number of visible 0/1 units, or the layer of the data.
        n_hidden: number of hidden 0/1 units, or the hidden layer.
        n_classes: number of classes, at least 2.
        **options: those of `RBM`.

    Raises:
        ValueError: n_classes is not an integer >= 2, or as for `RBM`.

    Source:
        Larochelle, Bengio 2008, "Classification using discriminative restricted Boltzmann machines".

    Example:
        >>> rbm = RBMClassifier(6, 4, n_classes=3)
        >>> v, y = torch.ones(5, 6), torch.tensor([0, 1, 2, 0, 1])
        >>> rbm.hybrid_loss(v, y, generative=0.01).backward()
        >>> rbm.predict_proba(v).shape, rbm.predict(v).shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    visible: Partitioned

    def __init__(self, n_visible: int | Layer, n_hidden: int | Layer, *, n_classes: int, **options: Any) -> None:
        data = n_visible if isinstance(n_visible, Layer) else Binary(integer("n_visible", n_visible))
        label = Softmax(1, integer("n_classes", n_classes, at_least=2))
        super().__init__(Partitioned([data, label]), n_hidden, **options)
        self.n_classes, self.n_features = n_classes, data.size

    @property
    def data(self) -> Layer:
        """The layer of the data."""
        return next(iter(self.visible))

    # -- data and labels ----------------------------------------------------------------------------------------------

    def join(self, v: Tensor, y: Tensor) -> Tensor:
        """Visible states `[..., n_features + n_classes]` of data v `[..., n_features]` and labels y `[...]`.

        Raises:
            TypeError: y is not of integers.
            ValueError: v does not fit, y has another shape, or classes that do not exist.
        """
        v, y = self._features(v), self._labels(y, v)
        return torch.cat([v, functional.one_hot(y, self.n_classes).to(v.dtype)], -1)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The data `[..., n_features]` and the labels `[...]` of visible states."""
        v, label = self.visible.split(x)
        return v, label.argmax(-1)

    def _features(self, v: Tensor) -> Tensor:
        return self.data.check("v", v, self.chains.dtype)

    def _labels(self, y: Tensor, v: Tensor) -> Tensor:
        real("y", y)
        if y.is_floating_point() or y.dtype == torch.bool:
            raise TypeError(f"y: got {y.dtype}, want integer labels")
        if y.shape != v.shape[:-1]:
            raise ValueError(f"y: got shape {list(y.shape)}, want {list(v.shape[:-1])}, one label a row of v")
        if y.numel() and y.device.type == "cpu" and not (int(y.min()) >= 0 and int(y.max()) < self.n_classes):
            raise ValueError(
                f"y: got labels from {int(y.min())} to {int(y.max())}, want 0 to n_classes - 1 = {self.n_classes - 1}"
            )
        return y.long()

    # -- the conditional of the label ---------------------------------------------------------------------------------

    def class_scores(self, v: Tensor) -> Tensor:
        """log p(y | v) up to a number for each row: d_y + A_h(b + v W + U_y), `[..., n_classes]`.

        It is minus the free energy of (v, y), but for what all classes share. Differentiable.
        """
        v = self._features(v)
        W, vbias, hbias = self._parameters_now()
        n = self.n_features
        inputs = product(v, W[:n], hbias)
        of_hidden = self.hidden.log_normaliser(inputs.unsqueeze(-2) + W[n:])
        return vbias[n:] + of_hidden

    def predict_log_proba(self, v: Tensor) -> Tensor:
        """log p(y | v), exact: `[..., n_features]` to `[..., n_classes]`."""
        return self.class_scores(v).log_softmax(-1)

    def predict_proba(self, v: Tensor) -> Tensor:
        """p(y | v), exact: `[..., n_features]` to `[..., n_classes]`."""
        return self.class_scores(v).softmax(-1)

    @torch.no_grad()
    def predict(self, v: Tensor) -> Tensor:
        """The most likely label of each row: `[..., n_features]` to int64 `[...]`."""
        return self.class_scores(v).argmax(-1)

    @torch.no_grad()
    def score(self, v: Tensor, y: Tensor) -> float:
        """The fraction of rows of v whose most likely label is that of y."""
        return float((self.predict(v) == self._labels(y, v)).double().mean())

    # -- losses -------------------------------------------------------------------------------------------------------

    def discriminative_loss(self, v: Tensor, y: Tensor) -> Tensor:
        """The mean of -log p(y | v) over rows v `[N, n_features]` with labels y `[N]`; its gradient is exact."""
        y = self._labels(y, v)
        return functional.cross_entropy(self.class_scores(v).reshape(-1, self.n_classes), y.reshape(-1))

    def hybrid_loss(
        self, v: Tensor, y: Tensor, *, generative: float = 0.01, k: int = 1, method: str = "cd",
        generator: torch.Generator | None = None,
    ) -> Tensor:  # fmt: skip
        """The discriminative loss plus `generative` times the contrastive loss of data and labels together.

        Args:
            v: data `[N, n_features]`.
            y: labels `[N]`.
            generative: weight of the generative part, which regularises.
            k: number of Gibbs sweeps.
            method: "cd", "pcd" or "fpcd".
            generator: source of randomness; the default generator otherwise.

        Raises:
            ValueError: another method, or data and labels that do not fit.
        """
        losses = {"cd": self.cd_loss, "pcd": self.pcd_loss, "fpcd": self.fpcd_loss}
        if method not in losses:
            raise ValueError(f"method: got {method!r}, want one of {', '.join(losses)}")
        weight = number("generative", generative, 0, float("inf"))
        loss = self.discriminative_loss(v, y)
        return loss + weight * losses[method](self.join(v, y), k, generator=generator) if weight else loss
