"""Distributions on the unit sphere S^(k-1): densities against its surface measure (arc length at k = 2)."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.ops.tensor_utils import safe_normalize
from torch import Tensor
from torch.distributions.kl import register_kl


def log_area(k: int) -> float:
    """log of the surface of the unit sphere in k dimensions, 2 pi^(k/2) / Gamma(k/2)."""
    return math.log(2.0) + 0.5 * k * math.log(math.pi) - math.lgamma(0.5 * k)


class UniformSphere(dist.TorchDistribution):
    """Uniform on the unit sphere; event (k,).

    Args:
        centre: zeros (..., k), which give shape, type and device.
    """

    arg_constraints = {"centre": constraints.real_vector}  # noqa: RUF012
    support = constraints.sphere
    has_rsample = True

    def __init__(self, centre: Tensor, validate_args: bool | None = None) -> None:
        self.centre = centre
        super().__init__(centre.shape[:-1], centre.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "UniformSphere":
        return UniformSphere(self.centre.expand(*batch_shape, -1), validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        return self.centre

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return safe_normalize(torch.randn_like(self.centre.expand(self._extended_shape(sample_shape))))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
        return self.centre.new_full(shape, -log_area(self.event_shape[0]))


class PowerSpherical(dist.TorchDistribution):
    """Power spherical: p(x) proportional to (1 + direction . x)^concentration (De Cao & Aziz 2020); event (k,), k >= 2.

    Its normaliser is closed, and a draw is a beta along the direction and a uniform tangent: it has gradients without
    rejection. The tangent is a normal vector projected, where the paper's algorithm 1 reflects one that was drawn at the
    first axis: the reflection's gradient is unbounded where the direction is near that axis. Concentration 0 is uniform.

    Args:
        direction: unit vectors (..., k), the mode.
        concentration: (...), above 0.
    """

    arg_constraints = {"direction": constraints.sphere, "concentration": constraints.positive}  # noqa: RUF012
    support = constraints.sphere
    has_rsample = True

    def __init__(self, direction: Tensor, concentration: Tensor, validate_args: bool | None = None) -> None:
        batch = torch.broadcast_shapes(direction.shape[:-1], concentration.shape)
        self.direction = direction.expand(*batch, -1)
        self.concentration = concentration.expand(batch)
        super().__init__(batch, direction.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "PowerSpherical":
        return PowerSpherical(
            self.direction.expand(*batch_shape, -1), self.concentration.expand(batch_shape), self._validate_args
        )

    @property
    def radial(self) -> dist.Beta:
        """The beta, batch (...), of (1 + direction . x) / 2."""
        half = 0.5 * (self.event_shape[0] - 1)
        return dist.Beta(half + self.concentration, torch.full_like(self.concentration, half))

    @property
    def mean(self) -> Tensor:
        return self.direction * (2 * self.radial.mean - 1)[..., None]

    def place(self, fraction: Tensor, noise: Tensor) -> Tensor:
        """The point x (..., k) with (1 + direction . x) / 2 = fraction, away from the mode the way of `noise`.

        Args:
            fraction: (...) in (0, 1), a draw from `radial`.
            noise: (..., k), not along the direction; standard normals give a draw.
        """
        eps = torch.finfo(fraction.dtype).eps
        fraction = fraction.clamp(eps, 1 - eps)[..., None]
        tangent = safe_normalize(noise - (noise * self.direction).sum(-1, keepdim=True) * self.direction)
        return safe_normalize((2 * fraction - 1) * self.direction + 2 * (fraction * (1 - fraction)).sqrt() * tangent)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        noise = torch.randn_like(self.direction.expand(self._extended_shape(sample_shape)))
        return self.place(self.radial.rsample(torch.Size(sample_shape)), noise)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        cosine = (self.direction * value).sum(-1).clamp(min=torch.finfo(value.dtype).eps - 1)
        return self.concentration * torch.log1p(cosine) + self._log_normalizer()

    def entropy(self) -> Tensor:
        radial = self.radial
        a, total = radial.concentration1, radial.concentration1 + radial.concentration0
        expected = math.log(2.0) + torch.digamma(a) - torch.digamma(total)  # of log(1 + direction . x)
        return -self.concentration * expected - self._log_normalizer()

    def _log_normalizer(self) -> Tensor:
        radial = self.radial
        a, b = radial.concentration1, radial.concentration0
        return -(a + b) * math.log(2.0) - b * math.log(math.pi) - torch.lgamma(a) + torch.lgamma(a + b)


@register_kl(PowerSpherical, UniformSphere)
def _(p: PowerSpherical, q: UniformSphere) -> Tensor:
    return log_area(p.event_shape[0]) - p.entropy()
