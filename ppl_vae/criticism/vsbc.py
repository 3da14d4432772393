"""Variational simulation-based calibration: are posteriors of what all rows share off to one side?"""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch

from ppl_vae.criticism.predictive import as_frame
from ppl_vae.criticism.sbc import LEVEL
from ppl_vae.criticism.simulation import Simulation, pattern, simulate
from ppl_vae.data.tables import FRAMES, frame_like
from ppl_vae.errors import OptionError, whole
from ppl_vae.infer.draws import batch_of, row_keys, shared_key, traces
from ppl_vae.infer.scope import reading
from ppl_vae.infer.training import fit

FIT = signature(fit).parameters.keys() - {"vae", "data", "seed"}
"""Options of the fits."""


@dataclass(frozen=True, repr=False)
class Symmetry:
    """Where the truth lies in posteriors fitted to simulated data, q(w < truth), by simulation.

    Attributes:
        probabilities: (simulations, quantities), in [0, 1].
        names: of the quantities, each number of each site.
    """

    probabilities: np.ndarray
    names: tuple[str, ...]

    @property
    def fractions(self) -> np.ndarray:
        """The probabilities, (simulations, quantities)."""
        return self.probabilities

    def p_values(self) -> np.ndarray:
        """Of the hypothesis that probabilities p and 1 - p have one distribution, (quantities,); see `asymmetry`."""
        return np.array([asymmetry(p)[1] for p in self.probabilities.T])

    @property
    def table(self) -> Any:
        """A pandas data frame, one row a quantity: the statistic "D", "p", the "mean" of probabilities, above 1/2 where
        posteriors are too low; and their "spread", 1 where uniform, above 1 where posteriors are too narrow."""
        import pandas as pd

        p = self.probabilities
        found = {"D": [asymmetry(column)[0] for column in p.T], "p": self.p_values(), "mean": p.mean(0)}
        return pd.DataFrame(found | {"spread": p.std(0, ddof=1) * np.sqrt(12)}, pd.Index(self.names, name="quantity"))

    @property
    def verdict(self) -> str:
        """In a sentence, whether posteriors are off to one side, at level 0.001 over all of them (`LEVEL`)."""
        p, (n, m) = self.p_values(), self.probabilities.shape
        worst = int(p.argmin())
        if p[worst] * m > LEVEL:
            return (
                f"no posterior of {m} is off to one side as far as {n} fits can tell, at level {LEVEL:g} "
                f"(smallest p {p[worst]:.2g})"
            )
        side = "low" if self.probabilities[:, worst].mean() > 0.5 else "high"
        bad = int((p * m <= LEVEL).sum())
        return (
            f"{bad} of {m} posteriors are off to one side at level {LEVEL:g}; {self.names[worst]} most, too {side} "
            f"(p {p[worst]:.2g})"
        )

    def __repr__(self) -> str:
        return f"Symmetry({len(self.probabilities)} simulations; {self.verdict})"


def asymmetry(probabilities: np.ndarray) -> tuple[float, float]:
    """The two-sample Kolmogorov-Smirnov statistic of p and 1 - p, and its p-value (Yao et al. 2018, algorithm 2).

    The two samples are one sample and its mirror image, so that the usual p-value, made for independent ones, is too small.
    Were the distribution symmetric, each p would be above 1/2 by a fair coin: then n D is the farthest that a random walk of
    n steps gets from 0, whose distribution is exact (reflection principle; Butler 1969).

    Args:
        probabilities: (n,).

    Returns: D and its p-value.

    Example:
        >>> asymmetry(np.array([0.1, 0.2, 0.3, 0.4, 0.45]))
        (1.0, 0.0625)
    """
    from scipy.stats import binom

    far = np.abs(probabilities - 0.5).round(12)  # 1 - p of equals has to stay equal
    order = np.argsort(-far, kind="stable")
    walk = np.cumsum(np.sign((probabilities - 0.5).round(12))[order])
    last = np.append(np.diff(far[order]) != 0, True)  # ties are one step of the distribution functions
    n, distance = len(walk), int(np.abs(walk[last]).max())
    if not distance:
        return 0.0, 1.0
    turns = np.arange(-(n // (2 * distance)) - 2, n // (2 * distance) + 3)

    def below(end: np.ndarray) -> np.ndarray:
        """P(S_n < end)."""
        return binom.cdf(np.ceil((end + n) / 2) - 1, n, 0.5)

    def upto(end: np.ndarray) -> np.ndarray:
        """P(S_n <= end)."""
        return binom.cdf(np.floor((end + n) / 2), n, 0.5)

    inside = np.where(turns % 2, -1, 1) * (below((2 * turns + 1) * distance) - upto((2 * turns - 1) * distance))
    return distance / n, float(np.clip(1 - inside.sum(), 0, 1))


def vsbc(
    make: Callable[[int], Any],
    data: Any,
    num_simulations: int = 100,
    num_draws: int = 1000,
    seed: int = 0,
    **options: Any,
) -> Symmetry:
    """Draw data sets from the prior, fit each, and see where the truth lies in its posterior (Yao et al. 2018, algorithm 2).

    Of what all rows share: group effects, weights under weights="normal". For each it estimates p = q(w < truth). A
    posterior that is only too narrow or too wide keeps p symmetric about 1/2; one that is off to a side does not, and
    that is what is tested.

    Args:
        make: a number to a fresh model. Its parameters are the truth of what is simulated and are then fitted too: freeze
            (`requires_grad_(False)`) those of the decoder that are to stay.
        data: rows as those to simulate: as many, with their covariates, groups and missing cells.
        num_simulations: data sets, each fitted once.
        num_draws: of each posterior.
        seed: of the noise; of simulation i, and passed to `make`, seed + i.
        options: of `fit`.

    Returns: `Symmetry`; its verdict is at level 0.001 over all quantities: of the smallest p times their number.

    Raises: OptionError for a model in the place of `make`, options that `fit` does not have, a model without sites that all
        rows share, or an improper prior.

    Example:
        >>> import pandas as pd
        >>> from ppl_vae.model.build import build
        >>> rows = pd.DataFrame({"a": [0.1, 0.2, 0.9, 1.0], "site": ["u", "u", "v", "v"]})
        >>> options = {"latent": 1, "prior": "hierarchical", "group": "site"}
        >>> vsbc(lambda seed: build(rows, **options, seed=seed), rows, num_simulations=2, epochs=1).names
        ('location[0]', 'spread[0]', 'offsets[0]', 'offsets[1]')
    """
    if not callable(make) or isinstance(make, torch.nn.Module):
        raise OptionError(
            f"make: got a {type(make).__name__}, expected a function of a number that returns a fresh model"
        )
    if wrong := sorted(options.keys() - FIT):
        raise OptionError(f"vsbc: got the fit options {wrong}, expected some of {sorted(FIT)}")
    n, found, num_draws = whole("num_simulations", num_simulations, 2), [], whole("num_draws", num_draws)
    names: tuple[str, ...] = ()
    for number in range(seed, seed + n):
        vae = make(number)
        like = pattern(vae, len(batch_of(vae, data).x), data)
        with reading(vae, number):
            made = simulate(vae, len(like.x), number, like, fitted=False)  # type: ignore[union-attr]
        if not made.shared:
            raise OptionError("vsbc: got a model without sites that all rows share, expected some (of rows: sbc)")
        fit(vae, rows_like(vae, made, data), seed=number, **{"progress": False, "valid": 0.0, **options})
        few = made.batch.rows(slice(2))
        with reading(vae, number):
            guide, _ = traces(
                vae, few, row_keys(few, number), num_draws, strict=False, shared=shared_key(few.x, number)
            )
        parts = []
        for name, truth in made.shared.items():
            draws, value = guide[name]["value"].reshape(num_draws, -1), truth.reshape(-1)
            parts.append(((draws < value).double().mean(0) + (draws <= value).double().mean(0)) / 2)
        names = tuple(f"{name}[{j}]" for name, part in zip(made.shared, parts) for j in range(len(part)))
        found.append(torch.cat(parts).cpu().numpy())
    return Symmetry(np.stack(found), names)


def rows_like(vae: Any, made: Simulation, data: Any) -> Any:
    """Simulated rows in their own units and of the data's own type, with its columns that are not modelled."""
    schema, x = vae.schema, made.batch.x
    if schema is None:
        return x.cpu().numpy()
    if made.batch.mask is not None:
        x = torch.where(made.batch.mask, x, torch.nan)
    rows = schema.decode(x)
    if not schema.beside:
        return rows
    frame, drawn = as_frame(data), as_frame(rows)
    own = {name: drawn[name].array for name in drawn}
    columns = own | {name: frame[name].array for name in schema.beside if name in frame}
    return frame_like(columns, schema.kind if schema.kind in FRAMES else "pandas")
