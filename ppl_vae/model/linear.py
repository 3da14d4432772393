"""The linear baselines in closed form: PCA is an autoencoder, probabilistic PCA a VAE whose guide is exact."""

import math
from typing import Any, NoReturn

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.data.schema import Schema
from ppl_vae.errors import DataError, OptionError, whole
from ppl_vae.model.autoencoder import Autoencoder
from ppl_vae.model.priors import StandardNormal
from ppl_vae.model.vae import VAE


class PCA(Autoencoder):
    """Principal components by SVD of the centred rows, as the linear autoencoder that they are (Baldi & Hornik 1989).

    Args:
        latent: number of components q.

    Example:
        >>> x = np.random.RandomState(0).randn(50, 4)
        >>> PCA(2).fit(x).components.shape
        torch.Size([2, 4])
    """

    def __init__(self, latent: int) -> None:
        super().__init__(_unfitted, _unfitted)
        self.latent = whole("latent", latent)

    def fit(self, data: Any) -> "PCA":
        """Fit to data by a singular value decomposition.

        Args:
            data: (n, d), in its own units.

        Returns: itself.

        Raises: DataError for unusable data, OptionError if q exceeds the rank that n and d allow.
        """
        schema, x = _centred(data)
        rank = min(len(x) - 1, x.shape[1])  # the mean takes one
        if self.latent > rank:
            raise OptionError(f"latent: got {self.latent}, expected at most min(n - 1, d) = {rank}")
        _, _, components = _svd(x)
        self.allocate(x.shape[1], schema)
        _fill(self.encoder.net, components[: self.latent])
        _fill(self.decoder.net, components[: self.latent].T)
        return self

    def allocate(self, features: int, schema: Schema | None) -> "PCA":
        """Make room for weights of d features, to be filled by `fit` or from a file.

        Args:
            features: d.
            schema: of the columns.

        Returns: itself.
        """
        self.schema = schema
        self.encoder.net = _empty(features, self.latent)
        self.decoder.net = _empty(self.latent, features)
        self.recipe = {"kind": "pca", "latent": self.latent}
        return self.double()

    @property
    def components(self) -> Tensor:
        """Principal directions (q, d), orthonormal rows, float64."""
        return self.encoder.net.weight.detach()


class LinearNormal(nn.Module):
    """N(W value, diag(scale^2)), batch (...) and event (outputs,)."""

    scale: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = _empty(inputs, outputs)
        self.register_buffer("scale", torch.ones(outputs))

    def forward(self, value: Tensor) -> dist.Distribution:
        return dist.Normal(self.linear(value), self.scale).to_event(1)


class PPCA(VAE):
    """Probabilistic PCA (Tipping & Bishop 1999), x = W z + mean + noise, fitted in closed form.

    Once fitted it is a VAE whose guide is the exact posterior: every bound equals log p(x).

    Args:
        latent: number of latent dimensions q.

    Example:
        >>> x = np.random.RandomState(0).randn(50, 4)
        >>> ppca = PPCA(2).fit(x)
        >>> ppca.log_prob(x).shape, ppca.posterior(x).event_shape, ppca.sample(3).shape
        ((50,), torch.Size([2]), (3, 4))
    """

    def __init__(self, latent: int) -> None:
        super().__init__(_unfitted, _unfitted, StandardNormal(whole("latent", latent)))
        self.latent = whole("latent", latent)

    def fit(self, data: Any) -> "PPCA":
        """Fit by maximum likelihood (Tipping & Bishop 1999, eqs. 7 and 8).

        Args:
            data: (n, d), in its own units.

        Returns: itself.

        Raises: DataError for unusable data or where no variance is left for the noise, OptionError if q >= d.
        """
        schema, x = _centred(data)
        n, d = x.shape
        if self.latent >= d:
            raise OptionError(f"latent: got {self.latent}, expected fewer than the {d} columns")
        _, singular, components = _svd(x)
        variances = x.new_zeros(d)
        variances[: len(singular)] = singular**2 / n
        kept, noise = variances[: self.latent], variances[self.latent :].mean()
        if noise <= (torch.finfo(x.dtype).eps * max(n, d)) ** 2 * variances[0]:  # no more than rounding
            raise DataError(
                f"the rows lie in {self.latent} dimensions: got noise variance 0; expected latent to be lower"
            )
        # W = U (L - s^2)^(1/2) has orthogonal columns, so the posterior N(M^-1 W'x, s^2 M^-1), M = L, is mean-field
        loadings = (
            components[: self.latent].T * (kept - noise).clamp(min=0).sqrt()
        )  # equal eigenvalues may differ in the last bit
        self.allocate(d, schema)
        _fill(self.decoder.linear, loadings)
        _fill(self.encoder.linear, loadings.T / kept[:, None])
        self.decoder.scale.fill_(noise.sqrt())
        self.encoder.scale.copy_((noise / kept).sqrt())
        return self

    def allocate(self, features: int, schema: Schema | None) -> "PPCA":
        """Make room for weights of d features, to be filled by `fit` or from a file.

        Args:
            features: d.
            schema: of the columns.

        Returns: itself.
        """
        self.schema = schema
        self.encoder, self.decoder = LinearNormal(features, self.latent), LinearNormal(self.latent, features)
        self.recipe = {"kind": "ppca", "latent": self.latent}
        return self.double()

    @property
    def loadings(self) -> Tensor:
        """W (d, q), float64."""
        if self.recipe is None:
            _unfitted(self.prior().mean)
        return self.decoder.linear.weight.detach()

    @property
    def noise_variance(self) -> float:
        """The variance of the noise, in squared units of the data."""
        return float(self.decoder.scale[0] ** 2)

    @torch.no_grad()
    def log_prob(self, data: Any) -> np.ndarray:
        """Exact log p(x) of every row.

        Args:
            data: n rows.

        Returns: (n,) float64, in nats of the data in its own units.

        Raises: DataError.
        """
        x, noise = self.batch(data).x, self.noise_variance
        d, signal = x.shape[1], (self.loadings**2).sum(0)
        directions = self.loadings / signal.clamp(min=torch.finfo(x.dtype).tiny).sqrt()
        along = x @ directions  # W has orthogonal columns: what lies along them, and the rest
        rest = x - along @ directions.T
        quadratic = (rest**2).sum(1) / noise + (along**2 / (signal + noise)).sum(1)
        log_determinant = torch.log(signal + noise).sum() + (d - self.latent) * math.log(noise)
        return (-0.5 * (d * math.log(2 * math.pi) + log_determinant + quadratic)).numpy()

    @torch.no_grad()
    def posterior(self, data: Any) -> dist.Distribution:
        """Exact p(z|x) of every row.

        Args:
            data: n rows.

        Returns: a normal distribution of batch (n,), event (q,).

        Raises: DataError.
        """
        return self.encoder(self.batch(data).x)

    @torch.no_grad()
    def sample(self, n: int, seed: int = 0) -> Any:
        """Draw rows from the model.

        Args:
            n: rows.
            seed: of the noise.

        Returns: n rows, of the data's own type and units.
        """
        noise = torch.Generator().manual_seed(seed)
        z, e = (torch.randn(n, k, generator=noise, dtype=torch.float64) for k in reversed(self.loadings.shape))
        assert self.schema is not None
        return self.schema.decode(z @ self.loadings.T + self.noise_variance**0.5 * e)


def _unfitted(value: Tensor) -> NoReturn:
    raise OptionError("got a model without parameters, expected .fit(data) first")


def _centred(data: Any) -> tuple[Schema, Tensor]:
    schema = Schema.fit(data, "center")
    return schema, schema.tensors(data, dtype=torch.float64).x


def _svd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V' of x (n, d); each direction's largest entry is positive, so that a fit is unique."""
    u, singular, components = torch.linalg.svd(x, full_matrices=False)
    signs = components.gather(1, components.abs().argmax(1, keepdim=True)).sign()
    return u * signs.T, singular, components * signs


def _empty(inputs: int, outputs: int) -> nn.Linear:
    """A linear map without values yet: the usual initialisation would draw from the caller's generator."""
    return nn.utils.skip_init(nn.Linear, inputs, outputs, bias=False, dtype=torch.float64)


def _fill(linear: nn.Linear, weight: Tensor) -> None:
    with torch.no_grad():
        linear.weight.copy_(weight)
