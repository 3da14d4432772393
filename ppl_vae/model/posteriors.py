"""Posterior families: encoder outputs to a distribution of z."""

from collections.abc import Callable

import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae.errors import choose
from ppl_vae.model.families import SCALE_LINKS


class MeanField(nn.Module):
    """q(z|x) = N(loc, diag(scale^2)), both from the net (Kingma & Welling 2013, eq. 9)."""

    outputs = 2

    def __init__(self, link: str = "softplus") -> None:
        super().__init__()
        self.link = choose("scale_link", link, SCALE_LINKS)

    def forward(self, loc: Tensor, raw: Tensor) -> dist.Distribution:
        return dist.Normal(loc, self.link(raw)).to_event(1)


class Point(nn.Module):
    """q(z|x) a point mass at the net's output: the deterministic code of an autoencoder."""

    outputs = 1

    def __init__(self, link: str = "softplus") -> None:
        super().__init__()

    def forward(self, code: Tensor) -> dist.Distribution:
        return dist.Delta(code, event_dim=1)


POSTERIORS: dict[str, Callable[[str], nn.Module]] = {"mean_field": MeanField, "delta": Point}
