"""To ArviZ: draws of a model as labelled groups, of whichever major version is installed."""

from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np

from ppl_vae.infer.draws import draws as draws_of


def to_arviz(vae: Any, data: Any, num_draws: int = 200, seed: int = 0) -> Any:
    """Draws from the guide as ArviZ's InferenceData (0.2x) or an xarray DataTree (1.x).

    Groups: posterior {z}; log_prior {z}; sample_stats {lp: log p(x, z), log_q: log q(z|x), log_weight}, in nats of the
    data in its own units; observed_data {x}, in encoded units;
    constant_data {mask} where cells may be missing. Dimensions: chain (1), draw, row, latent, column. There is
    no log_likelihood group: leave-one-out on log p(x|z) is wrong for a latent of the row itself.

    Args:
        vae: a model with its guide.
        data: n rows.
        num_draws: S.
        seed: of the noise.

    Example:
        >>> from ppl_vae.model.linear import PPCA
        >>> x = np.random.RandomState(0).randn(20, 4)
        >>> to_arviz(PPCA(2).fit(x), x, num_draws=5).posterior.z.shape
        (1, 5, 20, 2)
    """
    import xarray as xr

    drawn = draws_of(vae, data, num_draws, seed)
    x = vae.batch(data).x.cpu().numpy()
    names = list(vae.schema.names) if vae.schema is not None else np.arange(x.shape[1])
    coords = {"chain": [0], "draw": np.arange(num_draws), "row": np.arange(len(x))}
    lead = ("chain", "draw", "row")

    def per_draw(values: Any) -> tuple[tuple[str, ...], np.ndarray]:
        return lead, values.cpu().numpy()[None]

    latent = {"latent": np.arange(drawn.z.shape[-1])}
    groups = {
        "posterior": xr.Dataset({"z": ((*lead, "latent"), drawn.z.cpu().numpy()[None])}, coords | latent),
        "log_prior": xr.Dataset({"z": per_draw(drawn.log_prior)}, coords),
        "sample_stats": xr.Dataset(
            {
                "lp": per_draw(drawn.log_lik + drawn.log_prior),
                "log_q": per_draw(drawn.log_q),
                "log_weight": per_draw(drawn.log_weight),
            },
            coords,
        ),
        "observed_data": xr.Dataset({"x": (("row", "column"), x)}, {"row": coords["row"], "column": names}),
    }
    if (mask := vae.batch(data).mask) is not None:
        groups["constant_data"] = xr.Dataset(
            {"mask": (("row", "column"), mask.cpu().numpy())}, {"row": coords["row"], "column": names}
        )
    return wrapped(groups, attributes(num_draws, seed))


def attributes(num_draws: int, seed: int) -> dict[str, Any]:
    """What made the draws."""
    return {
        "created_at": datetime.now(UTC).isoformat(),
        "inference_library": "pyro",
        "inference_library_version": version("pyro-ppl"),
        "approximate": 1,
        "num_draws": num_draws,
        "seed": seed,
    }


def wrapped(groups: dict[str, Any], attributes: dict[str, Any]) -> Any:
    """The container of the installed version: ArviZ 1.0 replaced InferenceData by xarray's DataTree."""
    if int(version("arviz").split(".")[0]) >= 1:
        import xarray as xr

        tree = xr.DataTree.from_dict(groups)
        tree.attrs.update(attributes)
        return tree
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # once a day it announces version 1
        import arviz
    return arviz.InferenceData(**groups, attrs=attributes)
