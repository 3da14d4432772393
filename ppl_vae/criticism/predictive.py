"""What a fitted model predicts: new rows, reconstructions, codes, and paths through the latent space."""

import math
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.nn.functional import one_hot

from ppl_vae.data.tables import FRAMES, frame_like, opened, read
from ppl_vae.errors import OptionError, whole
from ppl_vae.infer.draws import batch_of, believe, each_block, likelihood_mean, shared_key
from ppl_vae.infer.noise import Keyed
from ppl_vae.infer.scope import reading
from ppl_vae.model.conditional import Encoder
from ppl_vae.model.mixed import averaged, expected
from ppl_vae.model.shared import latent_sites
from ppl_vae.model.vae import call, global_sites


@dataclass(frozen=True)
class Simulated:
    """Rows drawn from a model, with the z that made them; accepted wherever data is.

    Attributes:
        x: n rows, of the type that the model was built from; in a frame with the columns that the model was given.
        z: (n, k).
    """

    x: Any
    z: np.ndarray

    def __repr__(self) -> str:
        return f"Simulated({len(self.z)} rows as .x, a {type(self.x).__name__}; z {self.z.shape[1:]})"


def generate(vae: Any, n: int, seed: int = 0, given: Any = None) -> Simulated:
    """Draw n rows from the model: z from the prior, x from p(x|z). What all rows share is drawn once, from its posterior.

    Args:
        vae: a model with its guide.
        n: rows.
        seed: of the noise.
        given: n rows with the columns that the model is given (covariates, group), where it has any; a group that is
            missing or was not seen is one from the population, each row in one of its own. A row of a class that the
            column of labels says is of that class; classes that are missing are drawn.

    Returns: `Simulated`: .x of the data's own type, .z (n, k).

    Raises: OptionError for an improper prior, or `given` that does not fit; DataError for its columns.

    Example:
        >>> from ppl_vae.model.linear import PPCA
        >>> generate(PPCA(2).fit(np.random.RandomState(0).randn(50, 4)), 3).x.shape
        (3, 4)
    """
    n = whole("n", n)
    if hasattr(vae, "members"):
        vae = vae.members[int(shared_key(torch.zeros(()), seed)) % len(vae.members)]
    if given is not None and (vae.schema is None or not vae.schema.beside):
        raise OptionError(f"given: got {type(given).__name__}, but this model is given no columns")
    further = _given(vae, given, n)
    label = further.pop("label", None)
    with reading(vae, seed):
        shared = poutine.trace(global_sites).get_trace(getattr(vae, "encoder", None))
        try:
            model = poutine.replay(_of_classes(vae, label), trace=shared)
            sites = poutine.trace(model).get_trace(n=n, **further).nodes
        except NotImplementedError as error:
            raise OptionError(
                "generate: got an improper prior, which cannot be sampled; expected a proper one"
            ) from error
    classes = sites["y"]["value"].argmax(-1).tolist() if "y" in sites else None
    rows = _with_given(vae, _own(vae, sites["x"]["value"]), given, classes)
    return Simulated(rows, sites["z"]["value"].cpu().numpy())


def _of_classes(vae: Any, label: Tensor | None) -> Any:
    """The model with the classes (n,) that are known put in, the others drawn."""
    if label is None:
        return vae.model
    return poutine.condition(vae.model, {"y": _known(label, vae.classes.prior().sample((len(label),)))})


def encode(vae: Any, data: Any, num_draws: int = 256, seed: int = 0) -> np.ndarray:
    """Posterior means E_q[z|x] (Kingma & Welling 2013).

    Args:
        vae: a model with its guide.
        data: n rows.
        num_draws: of a posterior without a mean in closed form, such as a flow's, the mean is that of so many draws.
        seed: of their noise.

    Returns: (n, k), in the units of the prior.

    Raises: OptionError, DataError.

    Example:
        >>> from ppl_vae.model.linear import PCA
        >>> x = np.random.RandomState(0).randn(50, 4)
        >>> encode(PCA(2).fit(x), x).shape
        (50, 2)
    """
    batch = batch_of(vae, data)
    believe(vae)
    args, given = batch.arguments()
    with reading(vae, seed):
        sites = poutine.trace(vae.guide).get_trace(*args, **given).nodes
        known = {"z", "data"} | (_of_decoder(vae) if isinstance(getattr(vae, "encoder", None), Encoder) else set())
        try:
            alone = not any(s["type"] == "sample" for n, s in sites.items() if n not in known)
            mean = sites["z"]["fn"].mean if alone else None
        except NotImplementedError:
            mean = None
    if mean is None:
        mean = torch.cat(each_block(vae, batch, num_draws, seed, lambda block: block.z.mean(0)))
    return mean.cpu().numpy()


def classify(vae: Any, data: Any) -> Any:
    """Probabilities q(y|x) of the classes of a model with a label (Kingma et al. 2014, M2).

    Args:
        vae: a model with a label.
        data: n rows; labels in them are not looked at.

    Returns: a pandas data frame (n, classes) whose columns are the classes; each row sums to 1.

    Raises: OptionError for a model without classes.

    Example:
        >>> import pandas as pd
        >>> from ppl_vae.model.build import build
        >>> frame = pd.DataFrame({"a": [0.1, 0.2, 0.9, 1.0], "kind": ["u", None, "v", None]})
        >>> classify(build(frame, latent=1, label="kind"), frame).columns.tolist()
        ['u', 'v']
    """
    import pandas as pd

    if getattr(vae, "classes", None) is None:
        raise OptionError("classify: got a model without classes, expected one built with label=...")
    batch = vae.batch(data)
    with reading(vae):
        probabilities = vae.classes.classify(batch.x, batch.mask, batch.c).softmax(-1)
    return pd.DataFrame(probabilities.cpu().numpy(), columns=list(vae.schema.label.levels))


def decode(vae: Any, z: Any, given: Any = None) -> Any:
    """E[x|z] for given codes; of a categorical column the most probable level.

    Uncertain weights of the decoder are averaged over, by 64 draws.

    Args:
        vae: a model.
        z: (n, k), in the units of the prior.
        given: n rows with the columns that the model is given (covariates, group), where it has any, and with its label,
            if x is to be of that class; where a label is missing it is the most probable class under p(y).

    Returns: n rows, of the data's own type and units.

    Raises: OptionError, DataError for codes or columns that do not fit.

    Example:
        >>> from ppl_vae.model.linear import PPCA
        >>> x = np.random.RandomState(0).randn(50, 4)
        >>> decode(PPCA(2).fit(x), np.zeros((1, 2))).shape
        (1, 4)
    """
    return _decoded(vae, z, given, {})


def _decoded(vae: Any, z: Any, given: Any, classes: dict[str, Tensor], seen: Tensor | None = None) -> Any:
    """As `decode`, with the classes "y" (n, classes) where they are known already, and the rows that z is of."""
    like = next((p for p in [*vae.parameters(), *vae.buffers()] if p.is_floating_point()), torch.zeros(()))
    with reading(vae):
        codes = torch.as_tensor(np.asarray(z, dtype=float)).to(like)
        if codes.dim() != 2:
            raise OptionError(f"decode: got z of shape {tuple(codes.shape)}, expected codes (n, k)")
        further = _given(vae, given, len(codes))
        label = further.pop("label", None)
        if getattr(vae, "classes", None) is not None:
            further["y"] = _known(label, vae.classes.prior().probs.expand(len(codes), -1))
        further |= classes
        try:
            x = _expected(vae, codes, further, seen)
        except RuntimeError as error:
            raise OptionError(f"decode: got z of shape {tuple(codes.shape)}, expected codes (n, k): {error}") from error
        return _own(vae, x)


def _expected(vae: Any, codes: Tensor, further: dict[str, Tensor], seen: Tensor | None = None) -> Tensor:
    """E[x|z] (n, d) in encoded units, averaged over what the decoder has of sites that all rows share."""
    if not hasattr(vae, "decoder"):  # two programs, without parts that can be asked alone
        model = poutine.condition(vae.model, data={"z": codes})
        return expected(poutine.trace(model).get_trace(seen, n=len(codes), **further).nodes["x"]["fn"])
    if not _of_decoder(vae):
        return expected(call(vae.decoder, codes, **further))
    with Keyed(shared_key(codes, 0), shared=shared_key(codes, 0)), pyro.plate("draws", SHARED_DRAWS, dim=-2):
        drawn = poutine.trace(global_sites).get_trace(vae.encoder)
        shared = poutine.replay(global_sites, trace=drawn)(vae.decoder)
    parts = []
    for start in range(0, len(codes), ROWS):
        rows = slice(start, start + ROWS)
        some = {name: value[rows] for name, value in further.items()}
        x = call(vae.decoder, codes[rows], **some, shared=shared)
        parts.append(averaged(x.expand((SHARED_DRAWS, len(codes[rows])))))
    return torch.cat(parts)


SHARED_DRAWS, ROWS = 64, 256
"""Draws of the decoder's own sites, and rows at a time, over which `decode` averages."""


def _of_decoder(vae: Any) -> set[str]:
    """The names of the sites that all rows share and only the decoder reads."""
    with poutine.block():
        nodes = poutine.trace(global_sites).get_trace(getattr(vae, "decoder", None)).nodes
    return set(latent_sites(nodes))


def reconstruct(vae: Any, data: Any, num_draws: int | None = None, seed: int = 0) -> Any:
    """E[x|z] for every row, of the data's own type and units.

    Args:
        vae: a model with its guide.
        data: n rows.
        num_draws: None decodes the posterior mean of z, in the row's own class or the most probable one; a number S
            averages over S draws of z (and of the class, where it is unknown). An `Ensemble` always averages, over 64 draws
            of each member for None.
        seed: of these draws.

    Returns: n rows, of the type of the model's own data and in its units; arrays in the shape in which these came.

    Raises: OptionError for an average over codes of levels or angles; DataError.

    Example:
        >>> from ppl_vae.model.linear import PCA
        >>> x = np.random.RandomState(0).randn(50, 4)
        >>> bool(np.allclose(reconstruct(PCA(4).fit(x), x), x, atol=1e-5))  # nothing is lost
        True
    """

    def average(block: Any) -> Tensor:
        return block.observed.mean(0)

    if num_draws is None and hasattr(vae, "members"):
        num_draws = SHARED_DRAWS
    if num_draws is None:
        z = encode(vae, data)
        seen = batch_of(vae, data).x if vae.schema is None else None
        return _like(_decoded(vae, z, data, _class(vae, data), seen), data)
    if vae.schema is not None and (column := _coded(vae.schema)):
        raise OptionError(f"num_draws: got {num_draws} with the column {column!r}, whose codes have no average")
    return _like(
        _own(vae, torch.cat(each_block(vae, batch_of(vae, data), num_draws, seed, average, likelihood_mean))), data
    )


def predict(vae: Any, data: Any, at: dict[str, Any]) -> Any:
    """E[x|z, c'] for every row with covariates changed: z from the row as it is, decoded at another c.

    A prediction for rows of that kind. It is a counterfactual (what this row would have been) only if c is not itself
    affected by z or x, nothing unmeasured moves both c and x, z keeps its meaning across c, and the decoder is right
    where such z and c were seldom seen together.

    Args:
        vae: a model with covariates.
        data: n rows.
        at: {covariate: one value, or n of them}, in its own units.

    Returns: n rows without covariates, of the data's own type and units.

    Raises: OptionError for a model without covariates or others than its own; DataError for a value that one cannot have.

    Example:
        >>> import pandas as pd
        >>> from ppl_vae.model.build import build
        >>> frame = pd.DataFrame({"a": [0.1, 0.2, 0.9, 1.0], "age": [20.0, 30.0, 40.0, 50.0]})
        >>> predict(build(frame, latent=1, covariates=["age"]), frame, at={"age": 60.0}).shape
        (4, 1)
    """
    schema = vae.schema.covariates if vae.schema is not None else None
    if schema is None:
        raise OptionError("predict: got a model without covariates, expected one built with covariates=...")
    if unknown := sorted(at.keys() - set(schema.names)):
        raise OptionError(f"at: got {unknown}, expected covariates among {list(schema.names)}")
    frame = as_frame(data)
    for name, value in at.items():
        if np.size(value) not in (1, len(frame)):
            raise OptionError(
                f"at: got {np.size(value)} values of {name!r}, expected one, or {len(frame)} for the rows"
            )
    return _like(_decoded(vae, encode(vae, data), frame.assign(**at), _class(vae, data)), data)


def interpolate(vae: Any, start: Any, stop: Any, steps: int = 10, given: Any = None) -> Any:
    """Decoded codes on the straight line between those of two rows.

    Args:
        vae: a model with its guide.
        start, stop: data of one row each.
        steps: codes on the line, both ends included.
        given: `steps` rows, as for `decode`.

    Returns: `steps` rows, of the data's own type.

    Raises: OptionError for more than one row; DataError.

    Example:
        >>> from ppl_vae.model.linear import PPCA
        >>> x = np.random.RandomState(0).randn(50, 4)
        >>> interpolate(PPCA(2).fit(x), x[:1], x[1:2], steps=5).shape
        (5, 4)
    """
    ends = [encode(vae, row) for row in (start, stop)]
    if any(len(end) != 1 for end in ends):
        raise OptionError(f"interpolate: got {[len(end) for end in ends]} rows, expected one at each end")
    share = np.linspace(0.0, 1.0, whole("steps", steps, 2))[:, None]
    return decode(vae, (1 - share) * ends[0] + share * ends[1], given)


def traverse(vae: Any, row: Any, dimension: int, values: Any = None, given: Any = None) -> Any:
    """Decoded codes of one row with one latent dimension moved through `values` (Higgins et al. 2017).

    Args:
        vae: a model with its guide.
        row: data of one row.
        dimension: its number, from 0.
        values: m numbers; None: -3 to 3 in 10 steps.
        given: m rows, as for `decode`.

    Returns: m rows, of the data's own type and units.

    Raises: OptionError for a dimension that there is not; DataError.

    Example:
        >>> from ppl_vae.model.linear import PPCA
        >>> x = np.random.RandomState(0).randn(50, 4)
        >>> traverse(PPCA(2).fit(x), x[:1], dimension=0, values=[-1.0, 0.0, 1.0]).shape
        (3, 4)
    """
    code = encode(vae, row)
    values = np.linspace(-3, 3, 10) if values is None else np.asarray(values, float)
    if len(code) != 1 or not 0 <= dimension < code.shape[1]:
        raise OptionError(
            f"traverse: got {len(code)} rows and dimension {dimension}, "
            f"expected one row and a dimension below {code.shape[1]}"
        )
    moved = np.repeat(code, len(values), 0)
    moved[:, dimension] = values
    return decode(vae, moved, given)


def manifold(vae: Any, side: int = 20, given: Any = None) -> Any:
    """E[x|z] on a grid over two latent dimensions, through the standard normal's quantiles (Kingma & Welling 2013, fig. 4).

    Args:
        vae: a model of two latent dimensions.
        side: points on each axis.
        given: side * side rows, as for `decode`.

    Returns: side * side rows, of the data's own type; the first latent dimension runs along rows of the picture.

    Raises: OptionError for another number of latent dimensions.

    Example:
        >>> from ppl_vae.model.linear import PPCA
        >>> manifold(PPCA(2).fit(np.random.RandomState(0).randn(50, 4)), side=3).shape
        (9, 4)
    """
    quantiles = torch.special.ndtri((torch.arange(whole("side", side), dtype=torch.float64) + 0.5) / side).numpy()
    try:
        return decode(vae, np.stack(np.meshgrid(quantiles, -quantiles), -1).reshape(-1, 2), given)
    except OptionError as error:
        if str(error).startswith("given"):
            raise
        raise OptionError("manifold: got a model of other than two latent dimensions, expected latent=2") from error


def _given(vae: Any, given: Any, n: int) -> dict[str, Tensor]:
    """Covariates, groups and labels of n rows, as the programs want them."""
    schema = vae.schema
    names = () if schema is None else schema.beside
    covariates = [] if schema is None or schema.covariates is None else list(schema.covariates.names)
    further: dict[str, Any] = {}
    if given is None and covariates:
        raise OptionError(
            f"given: got nothing, expected {n} rows with the columns {covariates} that the model is given"
        )
    if given is not None and names:
        frame = as_frame(given)
        if len(frame) != n:
            raise OptionError(f"given: got {len(frame)} rows, expected {n}")
        if missing := [name for name in covariates if name not in frame]:
            raise OptionError(f"given: got the columns {list(frame)}, expected also {missing}")
        if present := [name for name in names if name in frame]:
            like = next((p for p in [*vae.parameters(), *vae.buffers()] if p.is_floating_point()), torch.zeros(()))
            own = replace(schema.take(()), covariates=schema.covariates, group=schema.group, label=schema.label)
            further = own.tensors(frame[present], dtype=like.dtype, device=like.device).arguments()[1]
    return further


def _known(label: Tensor | None, probs: Tensor) -> Tensor:
    """One-hot classes (n, classes): the label, or where it is unknown the most probable class. The nets saw no others."""
    codes = probs.argmax(-1)
    return one_hot(codes if label is None else torch.where(label >= 0, label, codes), probs.shape[-1]).to(probs)


def _class(vae: Any, data: Any) -> dict[str, Tensor]:
    """The classes "y" (n, classes) of rows under the guide, where the model has classes."""
    if getattr(vae, "classes", None) is None:
        return {}
    batch = vae.batch(data)
    with reading(vae):
        logits = vae.classes.classify(batch.x, batch.mask, batch.c)
        return {"y": _known(batch.label, logits)}


def _with_given(vae: Any, rows: Any, given: Any, classes: list[int] | None) -> Any:
    """Rows of a frame beside the covariates and groups that they were drawn with, and their classes."""
    schema = vae.schema
    if schema is None or schema.kind not in FRAMES or (given is None and classes is None):
        return rows
    drawn = as_frame(rows)
    columns: dict[str, Any] = {}
    if given is not None:
        frame = as_frame(given)
        columns = {name: frame[name].array for name in schema.beside if name in frame}
    if classes is not None:
        columns[schema.label.name] = [schema.label.levels[code] for code in classes]
    return frame_like({name: drawn[name].array for name in drawn} | columns, schema.kind)


def as_frame(data: Any) -> Any:
    """Rows as a pandas data frame."""
    import pandas as pd

    data = opened(data) if isinstance(data, str | PathLike) else data
    while not hasattr(data, "columns") and hasattr(data, "x"):  # of a data set, or of rows that were drawn
        data = data.x
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
    """Rows with the index of the frame, or in the shape of the array, that they are of."""
    arrays = isinstance(data, np.ndarray | Tensor) and isinstance(rows, np.ndarray | Tensor)
    if arrays and math.prod(rows.shape) == math.prod(data.shape):  # else some of its columns are not modelled
        return rows.reshape(data.shape)
    if type(rows) is type(data) and hasattr(data, "iloc"):
        rows.index = data.index  # pandas aligns by it
    return rows


def _own(vae: Any, x: Tensor) -> Any:
    return x.cpu().numpy() if vae.schema is None else vae.schema.decode(x)
