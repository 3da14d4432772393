"""Priors that switch off latent dimensions: shrinkage on the columns of the decoder's first layer.

The decoder undoes any scale put on z alone, so z stays N(0, I) and the weights W (d_out, k) by which the first layer reads z
get the prior, one scale a column. The weights are observed at their present value, which makes them point estimates:
training maximises the joint density (maximum a posteriori), and no uncertainty of W enters a bound.

A scale may still move to the next layer: exactly after a homogeneous activation (relu), in part after others. A linear
decoder (`hidden=()`) leaves it nowhere to go.

The number kept is that of the model's own dimensions, so the noise has to fit too: with scale="shared" it is equal in
encoded units, and columns standardised each by its own (standardize="feature") then take dimensions to make up for it;
use standardize="center", or scale="feature". Columns merge late in a fit: go on until `kept` stays the same.
"""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae.errors import number


class GammaNormal(dist.TorchDistribution):
    """w ~ N(0, I / precision), precision ~ Gamma(a, b), integrated out: a multivariate Student-t; event (d,).

    log p(w) = lgamma(a + d/2) - lgamma(a) + a log b - d/2 log(2 pi) - (a + d/2) log(b + |w|^2 / 2).

    Args:
        size: d.
        concentration, rate: a and b, (...).
    """

    arg_constraints = {"concentration": constraints.positive, "rate": constraints.positive}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(self, size: int, concentration: Tensor, rate: Tensor, validate_args: bool | None = None) -> None:
        self.concentration, self.rate = torch.broadcast_tensors(concentration, rate)
        super().__init__(self.rate.shape, torch.Size([size]), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "GammaNormal":
        concentration, rate = self.concentration.expand(batch_shape), self.rate.expand(batch_shape)
        return GammaNormal(self.event_shape[0], concentration, rate, self._validate_args)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            precision = dist.Gamma(self.concentration, self.rate).sample(torch.Size(sample_shape))[..., None]
            return torch.randn(self._extended_shape(sample_shape)).to(precision) * precision.rsqrt()

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        half = 0.5 * self.event_shape[0]
        constant = (
            torch.lgamma(self.concentration + half) - torch.lgamma(self.concentration) - half * math.log(2 * math.pi)
        )
        # b^a (b + s)^-(a + d/2) without the cancellation of its two logarithms at tiny a and b
        ratio = torch.log1p(0.5 * value.square().sum(-1) / self.rate)
        return constant - half * self.rate.log() - (self.concentration + half) * ratio


class Shrinkage(nn.Module):
    """z ~ N(0, I), and a prior on the columns of the first layer.

    Args:
        layer: the decoder's first linear layer, whose columns [:latent] read z. It stays the decoder's: its parameters are
            not this module's.
        latent: k.
        columns: shrinks; called with W' (k, d_out), it samples its own scales if it has any, and observes W'.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Linear, latent: int, columns: nn.Module) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent))
        self.register_buffer("scale", torch.ones(latent))
        self._layer, self.columns = (layer,), columns  # in a tuple, so that its parameters are registered once

    def forward(self) -> dist.Distribution:
        return dist.Normal(self.loc, self.scale).to_event(1)

    @property
    def weights(self) -> Tensor:
        """W', one row for each latent dimension: (k, d_out)."""
        return self._layer[0].weight[:, : len(self.loc)].T

    def global_sites(self) -> Any:
        """Observe the columns, site "first_layer", outside the plate of rows; return the scales that were sampled."""
        return self.columns(self.weights)

    def kept(self, threshold: float = 0.1) -> int:
        """How many latent dimensions were not switched off.

        Args:
            threshold: a column counts whose root mean square is above this fraction of the largest column's.
        """
        size = self.weights.detach().square().mean(1).sqrt()
        return int((size > threshold * size.max()).sum())


class ARD(nn.Module):
    """Automatic relevance determination: a precision for each column, ~ Gamma(concentration, rate), integrated out.

    MacKay (1994); Bishop (1999), Bayesian PCA, eq. 6-7, who estimates the precisions instead.
    """

    concentration: Tensor
    rate: Tensor

    def __init__(self, latent: int, concentration: float = 1e-3, rate: float = 1e-3) -> None:
        super().__init__()
        self.register_buffer("concentration", torch.full((latent,), number("ard_concentration", concentration)))
        self.register_buffer("rate", torch.full((latent,), number("ard_rate", rate)))

    def forward(self, columns: Tensor) -> None:
        _observe(GammaNormal(columns.shape[1], self.concentration, self.rate).to_event(1), columns)


class Horseshoe(nn.Module):
    """The regularised horseshoe (Piironen & Vehtari 2017, eq. 2.8), one local scale a column.

    W_j ~ N(0, tau^2 l_j^2 I) with l_j^2 = c^2 lambda_j^2 / (c^2 + tau^2 lambda_j^2), lambda_j ~ C+(0, 1): site
    "local_scale" (k,), and tau ~ C+(0, global_scale): site "global_scale". The slab c is fixed.
    """

    one: Tensor

    def __init__(self, latent: int, global_scale: float = 0.1, slab: float = 2.0) -> None:
        super().__init__()
        self.global_scale, self.slab = number("global_scale", global_scale), number("slab", slab)
        self.register_buffer("one", torch.ones(latent))

    def forward(self, columns: Tensor) -> dict[str, Tensor]:
        tau = pyro.sample("global_scale", dist.HalfCauchy(self.global_scale * self.one[0]))
        local = pyro.sample("local_scale", dist.HalfCauchy(self.one).to_event(1))
        wide = tau[..., None] * local  # (..., k), as is the next
        scale = wide * self.slab / (self.slab**2 + wide**2).sqrt()
        normal = dist.Normal(0.0, scale[..., None]).expand((*scale.shape, columns.shape[1])).to_event(2)
        _observe(normal, columns)
        return {"global_scale": tau, "local_scale": local}


def _observe(distribution: Any, columns: Tensor) -> None:
    if am_i_wrapped():  # Pyro warns of an observation that no algorithm reads
        pyro.sample("first_layer", distribution, obs=columns)
