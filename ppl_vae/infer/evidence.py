"""log p(x), row by row, each number with its error and with what is known against it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vae.data.schema import Batch
from ppl_vae.data.tables import held_by
from ppl_vae.errors import OptionError, choose, whole
from ppl_vae.infer import ais
from ppl_vae.infer.draws import Draws, batch_of, check, each_block, facts, row_keys, shared_key
from ppl_vae.infer.joint import Joint, blocks
from ppl_vae.infer.noise import mix
from ppl_vae.infer.psis import FEWEST, k_hats, smoothed, threshold
from ppl_vae.infer.scope import reading

NOISY = 0.5
"""Standard error of a log of a mean, in nats, above which a few draws carry it."""


@dataclass(frozen=True, repr=False)
class Evidence:
    """Estimates of log p(x) for n rows, in nats of the data in its own units; "iwae" and "ais" from below on average.

    Sources: Burda et al. (2016), k-hat Vehtari et al. (2024), bounds on both sides Grosse et al. (2016).

    Attributes:
        log_p: (n,).
        mcse: (n,) Monte Carlo standard errors, by the delta method; never above 1, and not to be trusted above 0.5.
        k_hat: (n,) Pareto k-hat of the weights; NaN where it says nothing (AIS, fewer than 1000 draws). It is of the weights
            met, and never rules out a mode that no draw has reached.
        ess: (n,) effective sample sizes of the weights, (sum w)^2 / sum w^2, from 1 to the number of draws.
        upper: (n,) estimates from above on average (bidirectional Monte Carlo), of simulated rows under "ais", else None.
        method: "iwae", "psis" or "ais".
        num_draws: draws or chains a row.
        mean_mcse: Monte Carlo standard error of the mean of `log_p`, also where rows share what was drawn: equal rows their
            noise, all rows a draw of uncertain weights.
    """

    log_p: np.ndarray
    mcse: np.ndarray
    k_hat: np.ndarray
    ess: np.ndarray
    method: str
    num_draws: int
    mean_mcse: float
    upper: np.ndarray | None = None

    @property
    def doubtful(self) -> np.ndarray:
        """(n,) of bool: rows whose number should not be trusted, by k-hat, or by the standard error where there is none."""
        bad = np.where(np.isnan(self.k_hat), self.mcse > NOISY, self.k_hat > threshold(max(self.num_draws, 11)))
        return bad | ~np.isfinite(self.log_p)

    @property
    def verdict(self) -> str:
        """In a sentence, how far these numbers can be trusted."""
        bad, n = int(self.doubtful.sum()), len(self.log_p)
        if self.method == "ais":
            text = "AIS: k-hat does not apply"
            if self.upper is not None:
                above = self.upper - self.log_p
                error = above.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
                text += f"; estimates from above less these are {above.mean():.3f} nats on average (se {error:.3f})"
                if above.mean() < -4 * error:
                    return f"{text}: do not trust them, these rows cannot be of this very model as it is now"
        elif self.num_draws < FEWEST:
            text = f"{self.num_draws} draws are too few for k-hat, which wants {FEWEST}"
        else:
            text = f"k-hat is up to {np.max(self.k_hat):.2f}, and good up to {threshold(self.num_draws):.2f}"
        if not bad:
            return f"{text}; no row shows that its number cannot be trusted."
        return f"{text}; do not trust {bad} of {n} rows: a few draws carry them, and log p(x) is likely higher."

    def __repr__(self) -> str:
        mean = f"mean {self.log_p.mean():.4f} (mcse {self.mean_mcse:.4f})"
        return f"Evidence({self.method} of {len(self.log_p)} rows, {mean}; {self.verdict})"


def log_evidence(
    vae: Any,
    data: Any,
    method: str = "iwae",
    num_draws: int | None = None,
    seed: int = 0,
    *,
    steps: int | None = None,
    leapfrogs: int | None = None,
) -> Evidence:
    """Estimate log p(x) of every row at the fitted weights; with sites that all rows share, the log of its mean over them.

    Args:
        vae: a model with its guide.
        data: n rows; those that this very model simulated (`generate`) bring the z that made them, and "ais" then bounds
            log p(x) from above too.
        method: "iwae", the log of the mean of weights p(x,z)/q(z|x) (Burda et al. 2016); "psis", the same with the largest
            weights smoothed (Vehtari et al. 2024); "ais", annealed importance sampling from the prior (Neal 2001; Wu et al.
            2017), which does not use the encoder.
        num_draws: draws a row, of "ais" chains; None: 5000, and 16 chains.
        seed: of the noise. A row's estimate does not depend on other rows; rounding, which does, may lead chains of "ais"
            elsewhere.
        steps: temperatures of "ais", over which its cost grows and its error falls; None: 500.
        leapfrogs: HMC steps at each of them; None: 5.

    Returns: `Evidence`; print it for a verdict.

    Raises: OptionError for an improper prior or a point posterior, which have no evidence; ProgramError where "ais" cannot
        move z; DataError.

    Example:
        >>> from ppl_vae.model.linear import PPCA
        >>> x = np.random.RandomState(0).randn(50, 4)
        >>> ppca = PPCA(2).fit(x)
        >>> bool(np.allclose(log_evidence(ppca, x).log_p, ppca.log_prob(x)))  # the guide is exact
        True
    """
    estimate, num_draws, *lengths = checked_options(method, num_draws, steps=steps, leapfrogs=leapfrogs)
    batch = batch_of(vae, data)
    known = facts(vae, batch)
    if not known.proper or (known.point and method != "ais"):
        what = "a point posterior" if known.proper else "an improper prior"
        raise OptionError(f"method: got {method!r} for {what}, expected programs whose log p(x) it can estimate")
    columns = estimate(vae, batch, num_draws, seed, held_by(data, "z"), *lengths)
    log_p, mcse, k_hat, ess = (np.concatenate([rows[i] for rows in columns]) for i in range(4))
    upper = [rows.upper for rows in columns if rows.upper is not None]
    share = np.sum([rows.share for rows in columns], 0) / len(log_p)  # of each draw in the mean over rows
    mean_mcse = float(share.std(ddof=1) / math.sqrt(num_draws))
    return Evidence(log_p, mcse, k_hat, ess, method, num_draws, mean_mcse, np.concatenate(upper) if upper else None)


def checked_options(method: str, num_draws: int | None = None, **path: int | None) -> tuple[Any, ...]:
    """The function of a method, and its draws, steps and leapfrogs: as given to `log_evidence`, or the defaults.

    Raises: OptionError.
    """
    estimate = choose("method", method, METHODS)
    if method != "ais" and (given := [name for name, value in path.items() if value is not None]):
        raise OptionError(f"{given[0]}: got {path[given[0]]!r} with {method!r}, expected it with 'ais' alone")
    num_draws = whole("num_draws", num_draws if num_draws is not None else DEFAULT.get(method, 5000), 2)
    if method == "psis" and num_draws < FEWEST:
        raise OptionError(f"num_draws: got {num_draws} with 'psis', expected at least {FEWEST}")
    lengths = [whole(name, default if path.get(name) is None else path[name]) for name, default in PATH.items()]
    return estimate, num_draws, *lengths


class Rows(NamedTuple):
    """The figures of some rows, each (n,), and the draws' weights over their mean, summed over rows (S,)."""

    log_p: np.ndarray
    mcse: np.ndarray
    k_hat: np.ndarray
    ess: np.ndarray
    share: np.ndarray
    upper: np.ndarray | None = None


def _iwae(vae: Any, batch: Batch, num_draws: int, seed: int, *unused: Any) -> list[Rows]:
    """The log of the mean of weights p(x,z)/q(z|x) (Burda et al. 2016, eq. 8)."""

    def read(block: Draws) -> Rows:
        return _summary(_contiguous(block.log_weight))

    return each_block(vae, batch, num_draws, seed, read, shared=False)


def _psis(vae: Any, batch: Batch, num_draws: int, seed: int, *unused: Any) -> list[Rows]:
    """The same with the largest weights smoothed by a generalised Pareto law (Vehtari et al. 2024)."""

    def read(block: Draws) -> Rows:
        log_weight, k_hat = smoothed(_contiguous(block.log_weight))
        return _summary(log_weight, k_hat)

    return each_block(vae, batch, num_draws, seed, read, shared=False)


def _ais(vae: Any, batch: Batch, num_draws: int, seed: int, z: Any, steps: int, leapfrogs: int) -> list[Rows]:
    """Annealed importance sampling from the prior, without the encoder (Neal 2001; Wu et al. 2017)."""
    if z is not None and len(z) != len(batch.x):
        raise OptionError(
            f"data: got {len(batch.x)} simulated rows with {len(z)} z, expected the z of each row, or their .x"
        )
    with reading(vae, seed):
        check(vae, batch, read_guide=False)
        found = []
        for start, block in blocks(batch, num_draws):
            keys, shared = row_keys(block, seed), shared_key(block.x, seed)
            pilot = Joint(vae, block, keys, ais.PILOTS, shared)
            path = ais.tuned(pilot.terms, pilot.prior_draws(mix(keys + 1)), mix(keys + 2), steps, leapfrogs)
            joint = Joint(vae, block, keys, num_draws, shared)
            log_weight = ais.forward(joint.terms, joint.prior_draws(mix(keys + 3)), mix(keys + 4), path)
            upper, nothing = None, np.full(len(keys), np.nan)  # k-hat says nothing of chains
            if z is not None and not joint.shared:
                if z.shape[-1] != joint.start.shape[-1]:
                    raise OptionError(
                        f"data: got simulated rows with {z.shape[-1]} latent dimensions, expected those of this very model, "
                        f"which has {joint.start.shape[-1]}, or their .x"
                    )
                exact = torch.as_tensor(z[start : start + len(block.x)]).to(joint.start)
                begin = joint.to_z.inv(exact).expand(num_draws, -1, -1)
                upper = -_summary(-_contiguous(ais.backward(joint.terms, begin, mix(keys + 5), path)), nothing).log_p
            found.append(_summary(_contiguous(log_weight), nothing)._replace(upper=upper))
        return found


METHODS: dict[str, Callable[..., list[Rows]]] = {"iwae": _iwae, "psis": _psis, "ais": _ais}
DEFAULT = {"ais": 16}
PATH = {"steps": 500, "leapfrogs": 5}


def _contiguous(log_weight: Tensor) -> np.ndarray:
    # contiguous along draws: a reduction along the first dimension depends on the row's place
    return log_weight.T.contiguous().cpu().numpy().T


def _summary(log_weight: np.ndarray, k_hat: np.ndarray | None = None) -> Rows:
    """Of log weights (S, n): log of the mean weight, its standard error, k-hat unless it is known, effective sample size."""
    draws, top = len(log_weight), log_weight.max(0)
    weight = np.exp(log_weight - np.where(np.isfinite(top), top, 0.0))
    mean = weight.mean(0)
    error = weight.std(0, ddof=1) / np.sqrt(draws) / mean
    k_hat = k_hats(log_weight) if k_hat is None else k_hat
    share = (weight / mean).sum(1)
    return Rows(top + np.log(mean), error, k_hat, weight.sum(0) ** 2 / (weight**2).sum(0), share)
