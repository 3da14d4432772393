"""Posterior families: a net's raw output to a distribution of z, event (k,).

Each has `.outputs`, and is called with that many tensors (..., k), or `.width`, and is called with raw (..., width). At
raw 0 each is near the prior that goes with it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.ops.tensor_utils import safe_normalize
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppl_vae.errors import OptionError, choose, whole
from ppl_vae.model.discrete import BitVector
from ppl_vae.model.families import SCALE_LINKS, UNIT
from ppl_vae.model.flows import Flow
from ppl_vae.model.mixture import of_normals
from ppl_vae.model.simplex import logistic_normal
from ppl_vae.model.sphere import PowerSpherical

CONCENTRATION_FLOOR = 0.1
"""Smallest concentration of a Dirichlet posterior: below it draws underflow in float32."""


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


class LowRank(nn.Module):
    """q(z|x) = N(loc, F F' + diag(scale^2)), F (k, rank)."""

    def __init__(self, latent: int, link: str = "softplus", rank: int = 2) -> None:
        super().__init__()
        self.latent, self.rank, self.link = latent, whole("rank", rank), choose("scale_link", link, SCALE_LINKS)
        self.width = latent * (2 + self.rank)

    def forward(self, raw: Tensor) -> dist.Distribution:
        loc, scale, factor = raw.split([self.latent, self.latent, self.latent * self.rank], -1)
        factor = factor.unflatten(-1, (self.latent, self.rank))
        return dist.LowRankMultivariateNormal(loc, factor, self.link(scale) ** 2)


class FullRank(nn.Module):
    """q(z|x) = N(loc, L L'), L lower triangular with a positive diagonal."""

    def __init__(self, latent: int, link: str = "softplus") -> None:
        super().__init__()
        self.latent, self.link = latent, choose("scale_link", link, SCALE_LINKS)
        self.below = latent * (latent - 1) // 2
        self.width = 2 * latent + self.below

    def forward(self, raw: Tensor) -> dist.Distribution:
        loc, scale, lower = raw.split([self.latent, self.latent, self.below], -1)
        row, column = torch.tril_indices(self.latent, self.latent, -1, device=raw.device)
        tril = self.link(scale).diag_embed()
        tril[..., row, column] = lower / self.latent**0.5  # so that a row's norm does not grow with k at the start
        return dist.MultivariateNormal(loc, scale_tril=tril)


class NormalMixture(nn.Module):
    """q(z|x) a mixture of diagonal normals, all of it from the net; its components start spread over one unit."""

    spread: Tensor

    def __init__(self, latent: int, link: str = "softplus", components: int = 3) -> None:
        super().__init__()
        self.latent, self.components = latent, whole("posterior_components", components)
        self.link = choose("scale_link", link, SCALE_LINKS)
        self.width = self.components * (2 * latent + 1)
        spread = torch.linspace(-0.5, 0.5, self.components)
        self.register_buffer("spread", (spread - spread.mean())[:, None])  # of one component: 0

    def forward(self, raw: Tensor) -> dist.Distribution:
        logits, rest = raw.split([self.components, self.width - self.components], -1)
        loc, scale = rest.unflatten(-1, (self.components, -1)).chunk(2, -1)
        return of_normals(logits, loc + self.spread, self.link(scale))


class LogisticNormal(nn.Module):
    """q(z|x) on the simplex of k parts: softmax(V y), y ~ N(loc, diag(scale^2)) in k - 1 log-ratios (`simplex.LogRatio`)."""

    def __init__(self, latent: int, link: str = "softplus") -> None:
        super().__init__()
        self.width, self.link = (
            2 * (at_least_two("logistic_normal", latent) - 1),
            choose("scale_link", link, SCALE_LINKS),
        )

    def forward(self, raw: Tensor) -> dist.Distribution:
        loc, scale = raw.chunk(2, -1)
        return logistic_normal(loc, self.link(scale))


class Dirichlet(nn.Module):
    """q(z|x) = Dirichlet(softplus(raw + c) + `CONCENTRATION_FLOOR`), 1.1 at raw 0."""

    outputs = 1

    def forward(self, raw: Tensor) -> dist.Distribution:
        return dist.Dirichlet(softplus(raw + UNIT["softplus"]) + CONCENTRATION_FLOOR)


class Spherical(nn.Module):
    """q(z|x) power spherical (De Cao & Aziz 2020): a direction (k numbers) and a concentration, 1 at raw 0."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.width = at_least_two("power_spherical", latent) + 1

    def forward(self, raw: Tensor) -> dist.Distribution:
        direction, concentration = raw[..., :-1], softplus(raw[..., -1] + UNIT["softplus"])
        first = torch.eye(direction.shape[-1]).to(raw)[0]
        somewhere = direction.norm(dim=-1, keepdim=True) > 1e-6  # at 0 there is no direction, nor a gradient to one
        direction = safe_normalize(torch.where(somewhere, direction, first))
        return PowerSpherical(direction, concentration + torch.finfo(raw.dtype).eps)


class Bits(nn.Module):
    """q(z|x) independent bits, from logits."""

    outputs = 1

    def forward(self, logits: Tensor) -> dist.Distribution:
        return BitVector(logits)


class OneHot(nn.Module):
    """q(z|x) one of k classes as a one-hot vector, from logits."""

    outputs = 1

    def forward(self, logits: Tensor) -> dist.Distribution:
        return dist.OneHotCategorical(logits=logits)


def at_least_two(name: str, latent: int) -> int:
    """`latent`, or an OptionError for a family that needs two dimensions."""
    if latent < 2:
        raise OptionError(f"latent: got {latent}, expected at least 2 with {name!r}")
    return latent


def mean_field(latent: int, link: str) -> nn.Module:
    return MeanField(link)


def delta(latent: int, link: str) -> nn.Module:
    return Point(link)


def low_rank(latent: int, link: str, *, rank: int = 2) -> nn.Module:
    return LowRank(latent, link, rank)


def full_rank(latent: int, link: str) -> nn.Module:
    return FullRank(latent, link)


def iaf(
    latent: int, link: str, *, transforms: int = 3, flow_hidden: Sequence[int] = (64, 64), context: int = 16
) -> nn.Module:
    return Flow(latent, "affine", transforms, flow_hidden, context, inverse=True, link=link)


def spline_flow(
    latent: int, link: str, *, transforms: int = 3, flow_hidden: Sequence[int] = (64, 64), context: int = 16
) -> nn.Module:
    return Flow(latent, "spline", transforms, flow_hidden, context, link=link)


def mixture(latent: int, link: str, *, posterior_components: int = 3) -> nn.Module:
    return NormalMixture(latent, link, posterior_components)


def logistic(latent: int, link: str) -> nn.Module:
    return LogisticNormal(latent, link)


def dirichlet(latent: int, link: str) -> nn.Module:
    at_least_two("dirichlet", latent)
    return Dirichlet()


def power_spherical(latent: int, link: str) -> nn.Module:
    return Spherical(latent)


def bernoulli(latent: int, link: str) -> nn.Module:
    return Bits()


def categorical(latent: int, link: str) -> nn.Module:
    at_least_two("categorical", latent)
    return OneHot()


class Posterior(NamedTuple):
    """A row of `POSTERIORS`: make(latent, link, *, its options) to a family, and what it is."""

    make: Callable[..., Any]
    text: str


POSTERIORS: dict[str, Posterior] = {
    "mean_field": Posterior(mean_field, "normal, independent dimensions (Kingma & Welling 2013, eq. 9)"),
    "delta": Posterior(delta, "a point"),
    "low_rank": Posterior(low_rank, "normal, covariance of low rank and a diagonal (Ong et al. 2018); rank=2"),
    "full_rank": Posterior(full_rank, "normal, full covariance (Kingma & Welling 2019)"),
    "iaf": Posterior(
        iaf, "inverse autoregressive flow (Kingma et al. 2016); transforms=3, flow_hidden=(64, 64), context=16"
    ),
    "spline_flow": Posterior(
        spline_flow, "neural spline coupling (Durkan et al. 2019); transforms=3, flow_hidden=(64, 64), context=16"
    ),
    "mixture": Posterior(
        mixture, "mixture of diagonal normals (Jankowiak & Karaletsos 2019, its gradient); posterior_components=3"
    ),
    "logistic_normal": Posterior(logistic, "logistic-normal on the simplex (Srivastava & Sutton 2017, section 3.2)"),
    "dirichlet": Posterior(dirichlet, "Dirichlet on the simplex (Figurnov et al. 2018, its gradient)"),
    "power_spherical": Posterior(power_spherical, "power spherical on the unit sphere (De Cao & Aziz 2020)"),
    "bernoulli": Posterior(bernoulli, "a vector of bits"),
    "categorical": Posterior(categorical, "one class of k, one-hot"),
}
