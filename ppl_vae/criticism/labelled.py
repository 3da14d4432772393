"""NumPy arrays to ArviZ, of whichever major version is installed: groups of labelled draws, and objects to compare.

No torch and no model here, so that an environment without them can check it.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np

from ppl_vae.errors import OptionError
from ppl_vae.infer.psis import installed, smoothed, threshold

SAMPLE = "sample"
"""The dimension of draws, which becomes chain and draw."""
WHOLE = ("count", "boolean", "categorical", "ordinal", "pixel")
"""Types of columns whose values are whole numbers, or codes of levels."""


class Labelled(NamedTuple):
    """An array with names for its dimensions; the first may be `SAMPLE`, of chains one after another."""

    values: Any
    dims: tuple[str, ...]
    attrs: Mapping[str, Any] = {}


class Export(NamedTuple):
    """What `labelled` makes a container of, in arrays, numbers and strings.

    Attributes:
        groups: {group: {variable: Labelled}}.
        coords: {dimension: labels}; a dimension without labels is numbered.
        chains: {group: number of its chains}; 1 where it is not named.
        attributes: of the whole, and of each group.
    """

    groups: Mapping[str, Mapping[str, Labelled]]
    coords: Mapping[str, Sequence[Any] | np.ndarray] = {}
    chains: Mapping[str, int] = {}
    attributes: Mapping[str, Any] = {}


def labelled(export: Export) -> Any:
    """ArviZ's InferenceData (0.2x) or an xarray DataTree (1.x).

    Example:
        >>> draws = Labelled(np.zeros((6, 3)), (SAMPLE, "latent"))
        >>> dict(labelled(Export({"posterior": {"z": draws}}, chains={"posterior": 2})).posterior.sizes)
        {'chain': 2, 'draw': 3, 'latent': 3}
    """
    import xarray as xr

    groups = {}
    for group, variables in export.groups.items():
        data: dict[str, Any] = {}
        for name, (values, dims, attrs) in variables.items():
            values = np.asarray(values)
            if dims[:1] == (SAMPLE,):
                dims = ("chain", "draw", *dims[1:])
                values = values.reshape(export.chains.get(group, 1), -1, *values.shape[1:])
            own = _free(name, [*data, "chain", "draw", *(dim for v in variables.values() for dim in v.dims)])
            data[own] = (dims, values, {**attrs, **({"name": name} if own != name else {})})
        sizes = {dim: size for dims, values, _ in data.values() for dim, size in zip(dims, values.shape)}
        labels = {dim: export.coords.get(dim, ()) for dim in sizes}
        coords = {dim: labels[dim] if len(labels[dim]) == size else np.arange(size) for dim, size in sizes.items()}
        groups[group] = xr.Dataset(data, coords)
    return wrapped(groups, dict(export.attributes))


def _free(name: str, taken: Sequence[str]) -> str:
    """A variable's name that no dimension and no other variable has, without the slash that separates groups."""
    name = name.replace("/", "_") or "_"
    return name if name not in taken else _free(f"{name}_", taken)


def cells(values: np.ndarray, dims: tuple[str, ...], name: str, columns: Sequence["Column"]) -> dict[str, Labelled]:
    """Cells (..., d) as one variable, or a variable a column where columns are of several types or have levels.

    Values of levels are codes; the levels are in the attribute "levels".

    Args:
        dims: of `values`, the columns' last.
        name: of the one variable.
        columns: the d columns.
    """
    if len({column.type for column in columns}) == 1 and not any(column.levels for column in columns):
        whole = all(column.whole for column in columns)
        return {name: Labelled(_integers(values) if whole else values, dims)}
    found = {}
    for j, column in enumerate(columns):
        own = _integers(values[..., j]) if column.whole else values[..., j]
        levels = {"levels": [str(level) for level in column.levels]} if column.levels else {}
        found[column.name] = Labelled(own, dims[:-1], {"type": column.type, **levels})
    return found


class Column(NamedTuple):
    """What a column is.

    Attributes:
        type: a name in `data.columns.TYPES`.
        levels: what its codes stand for, or None.
        complete: whether no cell is missing.
    """

    name: str
    type: str
    levels: Sequence[Any] | None = None
    complete: bool = True

    @property
    def whole(self) -> bool:
        """Whether its values are of an integer type, which ArviZ draws as bars; those of an incomplete column hold NaN, and
        its replicates have to be of the same type."""
        return self.complete and self.type in WHOLE


def _integers(values: np.ndarray) -> np.ndarray:
    return np.rint(values).astype(np.int32 if np.abs(values).max(initial=0) < 2**31 else np.int64)


def attributes(num_draws: int, seed: int, **more: Any) -> dict[str, Any]:
    """What made the draws, by the names of ArviZ's schema, and ours."""
    known = {
        "created_at": datetime.now(UTC).isoformat(),
        "creation_library": "ppl_vae",
        "creation_library_version": _version("ppl_vae"),
        "creation_library_language": "Python",
        "arviz_version": version("arviz"),
        "inference_library": "pyro",
        "inference_library_version": _version("pyro-ppl"),
        "approximate": 1,
        "num_draws": num_draws,
        "seed": seed,
    }
    return {name: value for name, value in (known | more).items() if value is not None}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # used from its sources
        return None


def wrapped(groups: dict[str, Any], attributes: dict[str, Any]) -> Any:
    """Datasets in the container of the installed version: ArviZ 1.0 replaced InferenceData by xarray's DataTree."""
    groups = {name: dataset.assign_attrs(attributes) for name, dataset in groups.items()}
    if _first_version() >= 1:
        import xarray as xr

        tree = xr.DataTree.from_dict(groups)
        tree.attrs.update(attributes)
        return tree
    return installed().InferenceData(**groups, attrs=attributes)


def elpd(log_p: Any, mcse: Any = None, k_hat: Any = None, num_draws: int = 0, p: float = np.nan) -> Any:
    """Log predictive densities of held-out rows (Vehtari et al. 2017) as ArviZ's `compare` and `plot_compare` take them.

    Their sum is kept under the name "loo", the only one that both versions accept, and so is printed as such, held out or
    left out. The standard error is that over rows,
    in which the Monte Carlo error of each is contained.

    `az.compare` finds stacking weights from exp(log_p): where rows have log densities below -700 use
    `method="bb-pseudo-bma"`. Only models of the same rows, cells and base measure can be compared.

    Args:
        log_p: (n,) log p(x_i), or of leaving it out, in nats.
        mcse: (n,) Monte Carlo standard errors, kept as the attribute "mcse" of the pointwise values, of their sum.
        k_hat: (n,) Pareto k-hat of each estimate; a warning is set where one is above the threshold.
        num_draws: of each estimate.
        p: effective number of parameters, where it is known.

    Returns: `ELPDData` (0.2x) or `ELPDDataLOO` (1.x).

    Raises: OptionError for other shapes, or values that are not finite.

    Example:
        >>> float(elpd(np.array([-1.0, -2.0, -3.0, -2.0]))["se"])  # of a sum of 4, with a variance of 1/2 over rows
        1.4142135623730951
    """
    import xarray as xr

    try:
        values = np.asarray(log_p, dtype=float)
    except (TypeError, ValueError):
        raise OptionError(f"log_p: got a {type(log_p).__name__}, expected one number a row") from None
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise OptionError(f"log_p: got shape {values.shape}, or values that are not finite; expected one number a row")
    for name, other in (("mcse", mcse), ("k_hat", k_hat)):
        if other is not None and np.shape(other) != values.shape:
            raise OptionError(f"{name}: got shape {np.shape(other)}, expected {values.shape}, as log_p")
    error = {} if mcse is None else {"mcse": float(np.sqrt((np.asarray(mcse) ** 2).sum()))}
    good_k = threshold(num_draws) if num_draws > 1 else 0.7
    pointwise = xr.DataArray(values, dims="row", name="loo_i", attrs=error)
    k = None if k_hat is None else xr.DataArray(np.asarray(k_hat, dtype=float), dims="row", name="pareto_shape")
    found = {
        "elpd": float(values.sum()),
        "se": float(np.sqrt(len(values) * values.var())),
        "p": float(p),
        "n_samples": num_draws,
        "n_data_points": len(values),
        "warning": k is not None and bool((k > good_k).any()),
        "elpd_i": pointwise,
        "pareto_k": k,
        "scale": "log",
        "good_k": good_k,
    }
    if _first_version() >= 1:
        from arviz_stats.utils import ELPDDataLOO

        return ELPDDataLOO(**found)
    installed()
    from arviz.stats.stats_utils import ELPDData

    old = {"elpd": "elpd_loo", "p": "p_loo", "elpd_i": "loo_i"}
    kept = {old.get(name, name): value for name, value in found.items() if value is not None}
    return ELPDData(data=list(kept.values()), index=list(kept))


def loo(inference: Any) -> Any:
    """Leave-one-out log densities of the rows by Pareto-smoothed importance sampling, of weights drawn by any method.

    `az.loo` takes its draws to come from the posterior. Where they come from a variational q(w), it estimates something
    else: here each draw is weighted by p(w, x) / q(w) as well (Magnusson et al. 2019, Bayesian leave-one-out
    cross-validation for large data). The rows have to be those that w was learned from, all of them.

    Args:
        inference: what `to_arviz` returned, with a group log_likelihood.

    Returns: as `elpd`; a k-hat above the threshold warns that the row's number, or all of q, should not be trusted.

    Raises: OptionError for an export without log likelihoods, which says why it has none.

    Example:
        >>> from ppl_vae.criticism.inference_data import to_arviz
        >>> from ppl_vae.model.build import build
        >>> x = np.random.RandomState(0).randn(20, 3)
        >>> vae = build(x, latent=1, hidden=(4,), weights="normal")
        >>> loo(to_arviz(vae, x, num_draws=50)).n_data_points
        20
    """
    if not hasattr(inference, "attrs") or not hasattr(inference, "groups"):
        raise OptionError(f"loo: got a {type(inference).__name__}, expected what to_arviz returned")
    groups = inference.groups
    if "log_likelihood" not in [name.strip("/") for name in (groups() if callable(groups) else groups)]:
        raise OptionError(f"loo: got no log likelihood, {inference.attrs.get('left_out', 'as it was not asked for')}")
    log_lik = _samples(inference.log_likelihood["x"])
    stats = inference.sample_stats
    known = np.zeros((len(log_lik), 1))
    if "log_q_shared" in stats:
        known = _samples(stats["log_p_shared"] - stats["log_q_shared"])[:, None]
    log_weight, k_hat = smoothed(known - log_lik)
    log_p = _log_sum(log_weight + log_lik) - _log_sum(log_weight)
    within = _log_sum(known + log_lik) - _log_sum(known)  # log p(x_i | all rows)
    return elpd(log_p, k_hat=k_hat, num_draws=len(log_lik), p=float((within - log_p).sum()))


def _samples(array: Any) -> np.ndarray:
    """Chains one after another, (S, ...)."""
    values = array.transpose("chain", "draw", ...).values
    return values.reshape(-1, *values.shape[2:])


def _log_sum(values: np.ndarray) -> np.ndarray:
    return np.logaddexp.reduce(values, axis=0)


def _first_version() -> int:
    return int(version("arviz").split(".")[0])
