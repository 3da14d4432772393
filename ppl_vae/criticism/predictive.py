"""What a fitted model predicts: new rows, reconstructions, codes, and paths through the latent space."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from ppl_vae.data.tables import read
from ppl_vae.errors import OptionError, whole
from ppl_vae.infer.draws import each_block, in_mode, likelihood_mean
from ppl_vae.infer.scope import isolated
from ppl_vae.model.mixed import expected
from ppl_vae.model.vae import call


@dataclass(frozen=True)
class Simulated:
    """Rows drawn from a model, with the z that made them; accepted wherever data is.

    Attributes:
        x: n rows, of the type that the model was built from.
        z: (n, k).
    """

    x: Any
    z: np.ndarray


def generate(vae: Any, n: int, seed: int = 0, given: Any = None) -> Simulated:
    """Draw n rows from the model: z from the prior, x from p(x|z).

    Args:
        given: n rows with the columns that the model is given (covariates, group), where it has any.

    Example:
        >>> from ppl_vae.model.linear import PPCA
        >>> generate(PPCA(2).fit(np.random.RandomState(0).randn(50, 4)), 3).x.shape
        (3, 4)
    """
    n = whole("n", n)
    with isolated(vae, seed), torch.no_grad(), in_mode(vae, training=False):
        try:
            sites = poutine.trace(vae.model).get_trace(n=n, **_given(vae, given, n)).nodes
        except NotImplementedError as error:
            raise OptionError(
                "generate: got an improper prior, which cannot be sampled; expected a proper one"
            ) from error
    return Simulated(_own(vae, sites["x"]["value"]), sites["z"]["value"].cpu().numpy())


def encode(vae: Any, data: Any, num_draws: int = 256, seed: int = 0) -> np.ndarray:
    """Posterior means E_q[z|x], (n, k).

    Args:
        num_draws: of a posterior without a mean in closed form, such as a flow's, the mean is that of so many draws.

    Example:
        >>> from ppl_vae.model.linear import PCA
        >>> x = np.random.RandomState(0).randn(50, 4)
        >>> encode(PCA(2).fit(x), x).shape
        (50, 2)
    """
    batch = vae.batch(data)
    args, given = batch.arguments()
    with isolated(vae, seed), torch.no_grad(), in_mode(vae, training=False):
        sites = poutine.trace(vae.guide).get_trace(*args, **given).nodes
        try:
            alone = not any(s["type"] == "sample" for n, s in sites.items() if n not in ("z", "data"))
            mean = sites["z"]["fn"].mean if alone else None
        except NotImplementedError:
            mean = None
    if mean is None:
        mean = torch.cat(each_block(vae, batch, num_draws, seed, lambda block: block.z.mean(0)))
    return mean.cpu().numpy()


def classify(vae: Any, data: Any) -> Any:
    """Probabilities q(y|x) of the classes of a model with a label, (n, classes); labels in the data are not looked at.

    Returns: a data frame whose columns are the classes.
    """
    import pandas as pd

    if getattr(vae, "classes", None) is None:
        raise OptionError("classify: got a model without classes, expected one built with label=...")
    batch = vae.batch(data)
    with isolated(vae), torch.no_grad(), in_mode(vae, training=False):
        probabilities = vae.classes.classify(batch.x, batch.mask, batch.c).softmax(-1)
    return pd.DataFrame(probabilities.cpu().numpy(), columns=list(vae.schema.label.levels))


def decode(vae: Any, z: Any, given: Any = None) -> Any:
    """E[x|z] for codes z (n, k), of the data's own type and units; of a categorical column the most probable level.

    Args:
        given: n rows with the columns that the model is given, where it has any.
    """
    like = next(p for p in [*vae.parameters(), *vae.buffers()] if p.is_floating_point())
    with isolated(vae), torch.no_grad(), in_mode(vae, training=False):
        codes = torch.as_tensor(np.asarray(z, dtype=float)).to(like)
        if codes.dim() != 2:
            raise OptionError(f"decode: got z of shape {tuple(codes.shape)}, expected codes (n, k)")
        further = _given(vae, given, len(codes))
        if getattr(vae, "classes", None) is not None:
            further["y"] = vae.classes.prior().probs.expand(len(codes), -1)
        try:
            x = expected(call(vae.decoder, codes, **further))
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
        return _like(decode(vae, encode(vae, data), data), data)
    if vae.schema is not None and (column := _coded(vae.schema)):
        raise OptionError(f"num_draws: got {num_draws} with the column {column!r}, whose codes have no average")
    return _like(
        _own(vae, torch.cat(each_block(vae, vae.batch(data), num_draws, seed, average, likelihood_mean))), data
    )


def predict(vae: Any, data: Any, at: dict[str, Any]) -> Any:
    """E[x|z, c'] for every row with covariates changed: z from the row as it is, decoded at another c.

    A prediction for rows of that kind. It is a counterfactual (what this row would have been) only if c is not itself
    affected by z or x, nothing unmeasured moves both c and x, z keeps its meaning across c, and the decoder is right
    where such z and c were seldom seen together.

    Args:
        at: {covariate: one value, or n of them}.
    """
    schema = vae.schema.covariates if vae.schema is not None else None
    if schema is None:
        raise OptionError("predict: got a model without covariates, expected one built with covariates=...")
    if unknown := sorted(at.keys() - set(schema.names)):
        raise OptionError(f"at: got {unknown}, expected covariates among {list(schema.names)}")
    return _like(decode(vae, encode(vae, data), _frame(data).assign(**at)), data)


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


def _given(vae: Any, given: Any, n: int) -> dict[str, Any]:
    """Covariates and groups of n rows, as the programs want them."""
    schema = vae.schema
    if schema is None or (schema.covariates is None and schema.group is None):
        return {}
    if given is None:
        named = [
            *(schema.covariates.names if schema.covariates else ()),
            *([schema.group.name] if schema.group else ()),
        ]
        raise OptionError(f"given: got nothing, expected {n} rows with the columns {named} that the model is given")
    like = next(p for p in [*vae.parameters(), *vae.buffers()] if p.is_floating_point())
    frame, further = _frame(given), {}
    if len(frame) != n:
        raise OptionError(f"given: got {len(frame)} rows, expected {n}")
    if schema.covariates is not None:
        if missing := [name for name in schema.covariates.names if name not in frame]:
            raise OptionError(f"given: got the columns {list(frame)}, expected also {missing}")
        covariates = frame[list(schema.covariates.names)]
        further["c"] = schema.covariates.tensors(covariates, dtype=like.dtype, device=like.device).x
    if schema.group is not None:
        codes = {level: code for code, level in enumerate(schema.group.levels)}
        column = frame[schema.group.name] if schema.group.name in frame else [None] * n
        further["group"] = torch.tensor([codes.get(level, -1) for level in column], device=like.device)
    return further


def _frame(data: Any) -> Any:
    """Rows as a pandas data frame."""
    import pandas as pd

    if isinstance(data, pd.DataFrame):
        return data
    if hasattr(data, "to_pandas"):
        return data.to_pandas()
    table = read(data)
    return pd.DataFrame(table.values, columns=list(table.names))


def _coded(schema: Any) -> str | None:
    """The first column whose codes have no mean."""
    coded = ("categorical", "ordinal", "angle")
    return next((name for name, kind in zip(schema.names, schema.types or ()) if kind in coded), None)


def _like(rows: Any, data: Any) -> Any:
    if type(rows) is type(data) and hasattr(data, "iloc"):
        rows.index = data.index  # pandas aligns by it
    return rows


def _own(vae: Any, x: Tensor) -> Any:
    return x.cpu().numpy() if vae.schema is None else vae.schema.decode(x)
