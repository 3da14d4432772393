"""The checks of a fit: each gives figures with their errors, and a sentence."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_vae.criticism.aggregate import MOST, Aggregate, aggregate, mean_of
from ppl_vae.criticism.gaps import gaps as gaps_of
from ppl_vae.criticism.latent import ACTIVE, Estimate, activity, kl_by_dimension, prior_variance
from ppl_vae.criticism.pit import pit as pit_of
from ppl_vae.criticism.posterior_check import posterior_predictive
from ppl_vae.criticism.predictive import as_frame
from ppl_vae.criticism.sbc import LEVEL, sbc
from ppl_vae.data.schema import Batch
from ppl_vae.errors import OptionError, PplVaeError
from ppl_vae.infer.draws import Draws, Facts, believe, each_block, facts, row_keys, traces
from ppl_vae.infer.gradients import gradients
from ppl_vae.infer.psis import FEWEST, k_hats, threshold
from ppl_vae.infer.scope import reading

UNUSED = 0.01
"""Nats of KL below which a dimension counts as unused."""
NAT = 0.1
"""Nats that a verdict calls something."""
GAP_ROWS = 50
"""Rows that gaps are computed for: each is a search of its own."""
BATCH, REPEATS = 100, 50
"""Rows and noises of gradients."""
ESTIMATORS = {"elbo": 1, "analytic_kl": 1, "sticking_the_landing": 1, "score_function": 1, "iwae": 5, "dreg": 5}
"""Objectives whose gradients are compared, and their particles."""


class Finding(NamedTuple):
    """What a check found.

    Attributes:
        figures: {name: (value, Monte Carlo standard error)}; NaN where there is no error to give.
        verdict: a sentence.
        detail: arrays and tables behind the figures, by row, dimension or column.
    """

    figures: dict[str, tuple[float, float]]
    verdict: str
    detail: dict[str, Any]


class Drawn(NamedTuple):
    """One pass of S draws from q(z|x) over n rows: moments of z (n, k), log densities (S, n)."""

    mean: Tensor
    variance: Tensor
    log_lik: Tensor
    log_prior: Tensor
    log_q: Tensor


@dataclass(frozen=True)
class Subject:
    """What checks look at; what several of them need is computed once, when it is first asked for."""

    vae: Any
    data: Any
    batch: Batch
    num_draws: int
    seed: int

    @cached_property
    def known(self) -> Facts:
        """What the programs are."""
        return facts(self.vae, self.batch)

    @cached_property
    def drawn(self) -> Drawn:
        """Draws of every row."""
        self.require_density()

        def read(block: Draws) -> Drawn:
            z = block.z.double()
            return Drawn(z.mean(0), z.var(0), block.log_lik, block.log_prior, block.log_q)

        parts = each_block(self.vae, self.batch, self.num_draws, self.seed, read, shared=False)
        along = (0, 0, 1, 1, 1)
        return Drawn(*(torch.cat(column, axis) for column, axis in zip(zip(*parts), along)))

    @cached_property
    def units(self) -> Estimate:
        """How far the posterior mean of each dimension moves, in prior variances."""
        scale = prior_variance(self.vae, self.batch, self.seed)
        return activity(self.drawn.mean, self.drawn.variance, self.num_draws, scale)

    @cached_property
    def aggregate(self) -> Aggregate:
        """The parts of the KL term, of at most `MOST` rows."""
        self.require_density()
        return aggregate(self.vae, self.batch.rows(spaced(len(self.batch.x), MOST)), self.num_draws, self.seed)

    @cached_property
    def mean_field(self) -> bool:
        """Whether the dimensions of q(z|x) are independent."""
        few = self.batch.rows(slice(2))
        with reading(self.vae, self.seed):
            guide, _ = traces(self.vae, few, row_keys(few, self.seed), 1, strict=False)
        return isinstance(guide["z"]["fn"], torch.distributions.Independent)

    def require_density(self) -> None:
        """Raise an OptionError where log p(z) - log q(z|x) means nothing."""
        if self.known.point or not self.known.proper:
            what = "a point posterior" if self.known.proper else "an improper prior"
            raise OptionError(f"got {what}, expected programs whose prior and posterior have densities")


def spaced(n: int, most: int) -> Tensor:
    """Numbers of at most so many of n rows, evenly spaced."""
    return torch.arange(n) if n <= most else torch.linspace(0, n - 1, most).round().long()


def exact(value: float) -> tuple[float, float]:
    """A figure without Monte Carlo error."""
    return float(value), 0.0


def unsure(value: float) -> tuple[float, float]:
    """A figure whose Monte Carlo error is not known."""
    return float(value), math.nan


def chance(values: Any, limit: float, errors: Any) -> np.ndarray:
    """How probable it is that each value is above a limit, were its error normal."""
    from scipy.stats import norm

    return norm.sf((limit - np.asarray(values)) / np.maximum(np.asarray(errors), 1e-300))


def counted(above: np.ndarray, chances: np.ndarray) -> tuple[float, float]:
    """A count, and the error that comes of values near the limit."""
    return float(above.sum()), float(np.sqrt((chances * (1 - chances)).sum()))


# ---- the latent space


def active_units(subject: Subject) -> Finding:
    """Dimensions whose posterior mean has a variance over rows above 0.01 prior variances (Burda et al. 2016)."""
    values, errors = (part.cpu().numpy() for part in subject.units)
    active = values > ACTIVE
    figures = {
        "active units": counted(active, chance(values, ACTIVE, errors)),
        "dimensions": exact(len(active)),
    }
    idle = ", ".join(f"z[{j}]" for j in np.flatnonzero(~active)[:10])
    verdict = f"all {len(active)} dimensions are active"
    if not active.all():
        verdict = f"{active.sum()} of {len(active)} dimensions are active; the means of {idle} do not move with x"
    return Finding(figures, verdict, {"activity": values, "error": errors})


def collapse(subject: Subject) -> Finding:
    """Whether the guide is the prior, in some dimensions or all, and whether the decoder would use z (Lucas et al. 2019)."""
    drawn, found = subject.drawn, subject.aggregate
    active = int((subject.units.values > ACTIVE).sum())
    k, used = len(subject.units.values), float(drawn.log_lik.std(0).mean())
    rate, error = mean_of(drawn.log_q - drawn.log_prior)
    figures = {
        "share of idle dimensions": exact(1 - active / k),
        "KL": (rate, error),
        "I(x; z), at most": (found.information.high, found.information.high_error),
        "sd of log p(x|z) over draws": unsure(used),
    }
    if active == k:
        verdict = "none: every dimension moves with x"
    elif active:
        verdict = f"partial: {k - active} of {k} dimensions are idle"
    elif rate > NAT + 3 * error:
        verdict = f"posterior means do not move with x, but q(z|x) is {rate:.2g} nats from the prior"
    elif used > NAT:
        verdict = f"full: q(z|x) is the prior though log p(x|z) moves by {used:.2g} nats over z: the guide fails"
    else:
        verdict = "full: q(z|x) is the prior, and the decoder does not use z"
    return Finding(figures, verdict, {})


def kl(subject: Subject) -> Finding:
    """KL(q(z|x) || p(z)), mean over rows (Kingma & Welling 2013), and the part of each dimension where it has one."""
    drawn = subject.drawn
    total, error = mean_of(drawn.log_q - drawn.log_prior)
    figures, verdict = {"KL": (total, error)}, f"{total:.3g} nats a row"
    parts = kl_by_dimension(subject.vae, subject.batch, subject.seed)
    if parts is None:
        return Finding(figures, verdict + "; dimensions have no distributions of their own in closed form", {})
    values, errors = (part.cpu().numpy() for part in parts)
    unused = values < UNUSED
    figures["dimensions below 0.01 nats"] = counted(unused, chance(-values, -UNUSED, errors))
    figures["largest of a dimension"] = (float(values.max()), float(errors[values.argmax()]))
    verdict += f"; {unused.sum()} of {len(values)} dimensions carry less than {UNUSED} nats"
    return Finding(figures, verdict, {"kl": values, "error": errors})


def information(subject: Subject) -> Finding:
    """What z tells of the row, and how far the aggregate posterior is from the prior (Hoffman & Johnson 2016)."""
    found = subject.aggregate
    told, gap, most = found.information, found.gap, math.log(found.rows)
    figures = {
        "I(x; z), at least": (told.low, told.low_error),
        "I(x; z), at most": (told.high, told.high_error),
    }
    verdict = f"z tells {told.low:.3g} to {told.high:.3g} nats of the row"
    if told.low > 0.8 * most:
        verdict = (
            f"z tells at least {told.low:.3g} nats of the row ({found.rows} rows cannot show more than {most:.3g})"
        )
    if gap is None:
        return Finding(figures, verdict + "; rows have priors of their own, which q(z) is not held against", {})
    figures |= {
        "KL(q(z) || p(z)), at least": (gap.low, gap.low_error),
        "KL(q(z) || p(z)), at most": (gap.high, gap.high_error),
    }
    if gap.low > NAT + 3 * gap.low_error:
        verdict += (
            f"; q(z) is at least {gap.low:.3g} nats from p(z): rows drawn from the prior may be unlike the data's"
        )
    elif gap.high < NAT:
        verdict += f"; q(z) is within {NAT} nats of p(z)"
    else:
        verdict += f"; q(z) is at most {gap.high:.3g} nats from p(z), a bound too high to tell more with so few rows"
    return Finding(figures, verdict, {"aggregate": found})


def rate_distortion(subject: Subject) -> Finding:
    """Rate KL(q(z|x) || p(z)) and distortion -E log p(x|z), whose sum is minus the ELBO (Alemi et al. 2018)."""
    drawn = subject.drawn
    rate, distortion = drawn.log_q - drawn.log_prior, -drawn.log_lik
    figures = {"rate": mean_of(rate), "distortion": mean_of(distortion), "ELBO": mean_of(-rate - distortion)}
    parts = ", ".join(f"{name} {value:.4g}" for name, (value, _) in figures.items())
    detail = {"rate": rate.mean(0).cpu().numpy(), "distortion": distortion.mean(0).cpu().numpy()}
    return Finding(figures, f"{parts} nats a row", detail)


# ---- the guide


def evidence(subject: Subject) -> Finding:
    """Whether weights p(x,z)/q(z|x) can be trusted (Vehtari et al. 2024): k-hat, and the effective share of draws."""
    if subject.num_draws < FEWEST:
        raise OptionError(f"num_draws: got {subject.num_draws}, expected at least {FEWEST} for k-hat")
    drawn = subject.drawn
    log_weight = drawn.log_lik + drawn.log_prior - drawn.log_q
    share, error = effective(log_weight)
    k_hat, limit = k_hats(log_weight.cpu().numpy()), threshold(subject.num_draws)
    bad, n = k_hat > limit, len(k_hat)
    tail = min(0.2 * subject.num_draws, 3 * subject.num_draws**0.5)
    spread = (
        np.where(np.isfinite(k_hat), 1 + k_hat, 0.0).clip(0) / tail**0.5
    )  # Smith (1987): a variance of (1 + k)^2 / tail
    number, around = counted(bad, chance(k_hat, limit, spread))
    figures = {
        "share of bad k-hat": (number / n, around / n),
        "largest k-hat": unsure(k_hat.max()),
        "effective share of draws": (share, error),
    }
    verdict = f"k-hat is up to {k_hat.max():.2f}, and good up to {limit:.2f}"
    if bad.any():
        verdict += f": estimates of log p(x) by these weights are not to be trusted in {bad.sum()} of {n} rows"
    return Finding(figures, verdict, {"k_hat": k_hat})


def effective(log_weight: Tensor) -> tuple[float, float]:
    """Effective sample size over draws, mean over rows, and its error by the jackknife over ten groups of draws."""
    weight = (log_weight - log_weight.amax(0)).exp()
    groups = torch.stack([torch.stack([part.sum(0), (part**2).sum(0)]) for part in weight.chunk(10)])  # (groups, 2, n)
    sizes = torch.tensor([len(part) for part in weight.chunk(10)])

    def share(sums: Tensor, size: Any) -> Tensor:
        return (sums[..., 0, :] ** 2 / sums[..., 1, :].clamp(min=1e-300)).mean(-1) / size

    total = groups.sum(0)
    left_out = share(total - groups, len(weight) - sizes)
    m = len(left_out)
    return float(share(total, len(weight))), float(((m - 1) / m * ((left_out - left_out.mean()) ** 2).sum()).sqrt())


def gaps(subject: Subject) -> Finding:
    """What the bound loses by the family of q, and what by the encoder (Cremer et al. 2018), of some rows.

    Only the mean-field family is searched row by row. Of another guide's bound the best flow of each row tells how far it
    can be raised at least, by family and encoder together.
    """
    rows = spaced(len(subject.batch.x), GAP_ROWS)
    data = as_frame(subject.data).iloc[rows.tolist()]
    method = "svi" if subject.mean_field else "flow"
    found = gaps_of(subject.vae, data, method, num_draws=subject.num_draws, seed=subject.seed)
    n = len(found.approximation)
    names = (
        ("approximation gap", "amortization gap") if subject.mean_field else ("beyond a flow of each row", "up to it")
    )
    parts = ((found.approximation, found.approximation_error), (found.amortization, found.amortization_error))
    common = bool(
        facts(subject.vae, subject.batch).shared
    )  # then rows share noise, and their errors do not average out
    figures = {
        name: unsure(part.mean()) if common else (part.mean(), math.sqrt((error**2).sum()) / n)
        for name, (part, error) in zip(names, parts)
    } | {"rows": exact(n)}
    family, encoder = (figures[name] for name in names)
    if subject.mean_field:
        verdict = f"the mean-field family costs {family[0]:.2f} nats a row and the encoder {encoder[0]:.2f}"
    else:
        verdict = (
            f"the best flow of each row is {family[0]:.2f} nats below log p(x), the guide {encoder[0]:.2f} below that"
        )
    if family[0] < -3 * family[1]:
        verdict += "; below 0, so that the estimate of log p(x) is too low"
    elif subject.mean_field and max(family[0], encoder[0]) > NAT:
        worse = "a richer posterior" if family[0] > encoder[0] else "a larger encoder, or refining q for each row,"
        verdict += f": {worse} would help most"
    bad = int(found.evidence.doubtful.sum())
    if bad:
        verdict += f"; log p(x) is not to be trusted in {bad} of {n} rows"
    return Finding(figures, verdict, {"gaps": found})


def gradient_signal(subject: Subject) -> Finding:
    """Signal and noise of the encoder's gradient under each estimator, of one batch (Rainforth et al. 2018).

    At an optimum no gradient has a signal, and the noise alone tells estimators of one bound apart.
    """
    believe(subject.vae)
    rows = spaced(len(subject.batch.x), BATCH)
    data = as_frame(subject.data).iloc[rows.tolist()]
    figures, detail, refused = {}, {}, ""
    for name, particles in ESTIMATORS.items():
        try:
            found = gradients(
                subject.vae, data, name, particles=particles, num_repeats=REPEATS, seed=subject.seed
            ).parts.get("encoder")
        except PplVaeError as error:  # such as one whose gradient goes through draws, of a discrete z
            refused = str(error)
            continue
        if found is not None:
            title, noise = name if particles == 1 else f"{name}, K = {particles}", math.sqrt(found.variance)
            figures[f"signal to noise, {title}"] = (found.snr, found.snr_error)
            figures[f"noise, {title}"] = (noise, found.variance_error / (2 * noise) if noise else 0.0)
            detail[title] = found
    if not figures:
        raise OptionError(refused or "got an encoder without parameters that are trained")
    noises = {title: math.sqrt(part.variance) for title, part in detail.items()}
    least, most = min(noises, key=noises.__getitem__), max(noises, key=noises.__getitem__)
    verdict = f"noise of the encoder's gradient: {noises[least]:.2g} by {least}"
    if most != least:
        verdict = verdict.replace(": ", ": least ") + f", most {noises[most]:.2g} by {most}"
    return Finding(figures, verdict, detail)


def calibration(subject: Subject) -> Finding:
    """Ranks of the truth among the guide's draws, on rows that the model makes (Talts et al. 2018; Modrak et al. 2023)."""
    found = sbc(subject.vae, seed=subject.seed, given=subject.data)
    p = found.p_values()
    figures = {
        "smallest p, times quantities": unsure(min(1.0, p.min() * len(p))),
        "quantities not calibrated": unsure((p * len(p) < LEVEL).sum()),
        "simulations": exact(len(found.ranks)),
    }
    return Finding(figures, found.verdict, {"ranks": found})


# ---- the model


def predictive(subject: Subject) -> Finding:
    """Means, spreads and zeros of columns beside those of data sets that the model draws (Gelman et al. 1996), z from its
    prior."""
    found = posterior_predictive(subject.vae, subject.data, seed=subject.seed, new=True)
    held = found.dropna()
    outside = (held["data"] < held["low"]) | (held["data"] > held["high"])
    share, m = float(outside.mean()), len(held)
    figures = {"share outside the 90 % interval": unsure(share), "statistics": exact(m)}
    verdict = (
        f"outside of what 90 % of drawn data sets have: {outside.sum()} of {m} statistics of columns (10 % expected)"
    )
    if outside.any():
        width = (held["high"] - held["low"]).clip(lower=1e-12)
        column, statistic = ((held["data"] - held["model"]).abs() / width).idxmax()
        verdict += f"; farthest {statistic} of column {column!r}"
    return Finding(figures, verdict, {"table": found})


def pit(subject: Subject) -> Finding:
    """Where cells lie in the marginal predictions of their columns (Dawid 1984), uniform if the model is right."""
    found = pit_of(subject.vae, subject.data, seed=subject.seed)
    table = found.table.dropna()
    p, m = table["p"], len(table)
    bad = int((p * m < LEVEL).sum())
    figures = {
        "smallest p, times columns": unsure(min(1.0, float(p.min()) * m)),
        "columns not as predicted": unsure(bad),
    }
    verdict = (
        f"all {m} columns are distributed as the model predicts, as far as {len(found.values)} rows can tell, "
        f"at level {LEVEL:g}"
    )
    if bad:
        worst = table.loc[p.idxmin()]
        verdict = (
            f"{bad} of {m} columns are not distributed as the model predicts at level {LEVEL:g}, {p.idxmin()!r} most: "
            f"mean of the transform {worst['mean']:.2f} (0.5 if right), spread {worst['spread']:.2f} (1 if right)"
        )
    return Finding(figures, verdict, {"pit": found})


Check = Callable[[Subject], Finding]
CHECKS: dict[str, Check] = {
    "active_units": active_units,
    "collapse": collapse,
    "kl": kl,
    "information": information,
    "rate_distortion": rate_distortion,
    "evidence": evidence,
    "gaps": gaps,
    "gradients": gradient_signal,
    "calibration": calibration,
    "predictive": predictive,
    "pit": pit,
}
