"""What a fitted model predicts: new rows, reconstructions, codes, and paths through the latent space."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from ppl_vae.errors import OptionError, whole
from ppl_vae.infer.draws import each_block, in_mode, likelihood_mean
from ppl_vae.infer.scope import isolated


@dataclass(frozen=True)
class Simulated:
    """Rows drawn from a model, with the z that made them; accepted wherever data is.

    Attributes:
        x: n rows, of the type that the model was built from.
        z: (n, k).
    """

    x: Any
    z: np.ndarray


def generate(vae: Any, n: int, seed: int = 0) -> Simulated:
    """Draw n rows from the model: z from the prior, x from p(x|z).

    Example:
        >>> from ppl_vae.model.linear import PPCA
        >>> generate(PPCA(2).fit(np.random.RandomState(0).randn(50, 4)), 3).x.shape
        (3, 4)
    """
    n = whole("n", n)
    with isolated(vae, seed), torch.no_grad(), in_mode(vae, training=False):
        try:
            sites = poutine.trace(vae.model).get_trace(n=n).nodes
        except NotImplementedError as error:
            raise OptionError(
                "generate: got an improper prior, which cannot be sampled; expected a proper one"
            ) from error
    return Simulated(_own(vae, sites["x"]["value"]), sites["z"]["value"].cpu().numpy())


def encode(vae: Any, data: Any) -> np.ndarray:
    """Posterior means E_q[z|x], (n, k).

    Example:
        >>> from ppl_vae.model.linear import PCA
        >>> x = np.random.RandomState(0).randn(50, 4)
        >>> encode(PCA(2).fit(x), x).shape
        (50, 2)
    """
    x = vae.batch(data).x
    with isolated(vae), torch.no_grad(), in_mode(vae, training=False):
        q = vae.encoder(x)
        try:
            return q.mean.cpu().numpy()
        except NotImplementedError as error:
            raise OptionError(
                f"encode: got a posterior {type(q).__name__}, which has no mean; expected draws(...).z"
            ) from error


def decode(vae: Any, z: Any) -> Any:
    """E[x|z] for codes z (n, k), of the data's own type and units."""
    like = next(p for p in [*vae.parameters(), *vae.buffers()] if p.is_floating_point())
    with isolated(vae), torch.no_grad(), in_mode(vae, training=False):
        codes = torch.as_tensor(np.asarray(z, dtype=float)).to(like)
        if codes.dim() != 2:
            raise OptionError(f"decode: got z of shape {tuple(codes.shape)}, expected codes (n, k)")
        try:
            x = vae.decoder(codes).mean
        except RuntimeError as error:
            raise OptionError(f"decode: got z of shape {tuple(codes.shape)}, expected codes (n, k): {error}") from error
        return _own(vae, x)


def reconstruct(vae: Any, data: Any, num_draws: int | None = None, seed: int = 0) -> Any:
    """E[x|z] for every row, of the data's own type and units.

    Args:
        num_draws: None decodes the posterior mean of z; a number S averages over S draws of z.
    """

    def average(block: Any) -> Tensor:
        return block.observed.mean(0)

    if num_draws is None:
        rebuilt = decode(vae, encode(vae, data))
    else:
        rebuilt = _own(vae, torch.cat(each_block(vae, vae.batch(data).x, num_draws, seed, average, likelihood_mean)))
    if type(rebuilt) is type(data) and hasattr(data, "iloc"):
        rebuilt.index = data.index  # pandas aligns by it
    return rebuilt


def interpolate(vae: Any, start: Any, stop: Any, steps: int = 10) -> Any:
    """Decoded codes on the straight line between those of two rows.

    Args:
        start, stop: data of one row each.
        steps: codes on the line, both ends included.

    Returns: `steps` rows, of the data's own type.
    """
    ends = [encode(vae, row) for row in (start, stop)]
    if any(len(end) != 1 for end in ends):
        raise OptionError(f"interpolate: got {[len(end) for end in ends]} rows, expected one at each end")
    share = np.linspace(0.0, 1.0, whole("steps", steps, 2))[:, None]
    return decode(vae, (1 - share) * ends[0] + share * ends[1])


def traverse(vae: Any, row: Any, dimension: int, values: Any = None) -> Any:
    """Decoded codes of one row with one latent dimension moved through `values` (default: -3 to 3 in 10 steps)."""
    code = encode(vae, row)
    values = np.linspace(-3, 3, 10) if values is None else np.asarray(values, float)
    if len(code) != 1 or not 0 <= dimension < code.shape[1]:
        raise OptionError(
            f"traverse: got {len(code)} rows and dimension {dimension}, "
            f"expected one row and a dimension below {code.shape[1]}"
        )
    moved = np.repeat(code, len(values), 0)
    moved[:, dimension] = values
    return decode(vae, moved)


def manifold(vae: Any, side: int = 20) -> Any:
    """E[x|z] on a grid over two latent dimensions, through the standard normal's quantiles (Kingma & Welling 2013, fig. 4).

    Returns: side * side rows, of the data's own type; the first latent dimension runs along rows of the picture.
    """
    quantiles = torch.special.ndtri((torch.arange(whole("side", side), dtype=torch.float64) + 0.5) / side).numpy()
    try:
        return decode(vae, np.stack(np.meshgrid(quantiles, -quantiles), -1).reshape(-1, 2))
    except OptionError as error:
        raise OptionError("manifold: got a model of other than two latent dimensions, expected latent=2") from error


def _own(vae: Any, x: Tensor) -> Any:
    return x.cpu().numpy() if vae.schema is None else vae.schema.decode(x)
