"""A class y that is known on some rows only: semi-supervised learning (Kingma et al. 2014, M2)."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ppl_vae.errors import number
from ppl_vae.model.conditional import beside

CERTAIN = 1e4
"""Logit of a known class over the others: its probability is exactly 1, and 0 log 0 stays finite."""


class Classes(nn.Module):
    """The discrete site "y", a one-hot class (..., classes), summed out by enumeration where it is unknown.

    q(y | x) is the classifier; on a row with a known label it is a point mass there, which makes the bound that of
    log p(x, y) (Kingma et al. 2014, eq. 6), and log p(x) elsewhere (eq. 7).

    Args:
        inputs: x (..., d) and mask to features.
        net: features to logits (..., classes).
        classes: their number.
        covariates: c to features, where there are covariates.
        weight: of log q(y|x) on rows with a label, 0 or more, added to the training objective (eq. 9), in no bound or score.
    """

    def __init__(self, inputs: Any, net: Any, classes: int, covariates: Any = None, weight: float = 1.0) -> None:
        super().__init__()
        self.inputs, self.net, self.covariates = inputs, net, covariates
        self.weight = number("label_weight", weight, inclusive=True)
        self.logits = nn.Parameter(torch.zeros(classes))

    def prior(self) -> Any:
        """p(y)."""
        return dist.OneHotCategorical(logits=self.logits)

    def classify(self, x: Tensor, mask: Tensor | None, c: Tensor | None) -> Tensor:
        """Logits of q(y|x), (..., n, classes)."""
        return self.net(beside(self.inputs(x, mask), None if self.covariates is None else self.covariates(c)))

    def posterior(
        self, x: Tensor, mask: Tensor | None, c: Tensor | None, label: Tensor | None
    ) -> dist.OneHotCategorical:
        """q(y|x), certain where the label is known."""
        logits = self.classify(x, mask, c)
        if label is not None:
            certain = (self._one_hot(label, logits) - 1) * CERTAIN
            logits = torch.where((label >= 0)[..., None], certain, logits)
        return dist.OneHotCategorical(logits=logits)

    def supervise(self, x: Tensor, mask: Tensor | None, c: Tensor | None, label: Tensor) -> None:
        """The site "label": the known classes under the classifier, weighted."""
        if not self.weight:
            return
        logits = self.classify(x, mask, c)
        classes = dist.OneHotCategorical(logits=logits).mask(label >= 0)
        with poutine.scale(scale=self.weight):
            pyro.sample("label", classes, obs=self._one_hot(label, logits))

    def _one_hot(self, label: Tensor, like: Tensor) -> Tensor:
        return one_hot(label.clamp(min=0), len(self.logits)).to(like)
