"""Where the bound falls short of log p(x): in the family of q, and in the encoder that stands for a search in it."""

from inspect import signature
from typing import Any, NamedTuple

import numpy as np

from ppl_vae.errors import OptionError, choose, whole
from ppl_vae.infer.draws import draws
from ppl_vae.infer.evidence import Evidence, log_evidence
from ppl_vae.infer.local import BOUNDED, checked_options, posterior

ESTIMATE = signature(log_evidence).parameters.keys() - {"vae", "data", "method", "seed"}
"""Options of the estimate of log p(x)."""


class Gaps(NamedTuple):
    """The two parts of log p(x) - L[q(z|x)] (Cremer et al. 2018), row by row, in nats, for the family that was searched.

    Attributes:
        approximation: log p(x) - max over the family of L[q], (n,).
        amortization: that maximum - L of the encoder's q, (n,).
        approximation_error, amortization_error: their Monte Carlo standard errors, (n,).
        evidence: the estimate of log p(x), with what is known against it.
    """

    approximation: np.ndarray
    amortization: np.ndarray
    approximation_error: np.ndarray
    amortization_error: np.ndarray
    evidence: Evidence

    def __repr__(self) -> str:
        parts = (
            ("approximation", self.approximation, self.approximation_error),
            ("amortization", self.amortization, self.amortization_error),
        )
        means = ", ".join(f"{name} mean {gap.mean():.4f} (mean mcse {error.mean():.4f})" for name, gap, error in parts)
        return f"Gaps({len(self.approximation)} rows; {means} nats a row; evidence: {self.evidence.verdict})"


def gaps(
    vae: Any,
    data: Any,
    method: str = "svi",
    evidence: str = "iwae",
    num_draws: int = 1000,
    seed: int = 0,
    *,
    refine: dict[str, Any] | None = None,
    estimate: dict[str, Any] | None = None,
) -> Gaps:
    """Tell the family's part of the gap between bound and evidence from the encoder's (Cremer et al. 2018).

    The search for the best q starts at the encoder's answer, so that it finds a maximum near it. Where it stops early the
    amortisation gap comes out too small and the approximation gap too large by as much; where the evidence is a bound that
    is not tight, the approximation gap is too small. An approximation gap below 0 says one of both. Where the family that is
    searched is not the encoder's own, the second part holds what these families differ by, too: "svi" is that of mean-field
    normal guides, "flow" that of none. With
    uncertain weights it also holds what the log of a mean over these gains over the mean of the log.

    Args:
        vae: a model with its guide.
        data: n rows.
        method: of `posterior`, how a row's best q is found: "svi" in the mean-field family, "flow" in a richer one; or
            "laplace". Methods without a density of their draws have no bound.
        evidence: of `log_evidence`, how log p(x) is estimated.
        num_draws: for each of the bounds and, where `estimate` does not say, for the evidence of "iwae" and "psis".
        seed: of the noise.
        refine: further options of `posterior`.
        estimate: further options of `log_evidence`.

    Returns: `Gaps`; print it for the means and what speaks against the evidence.

    Raises: OptionError, ProgramError, DataError as those do; OptionError for a method without a bound.

    Example:
        >>> from ppl_vae.model.linear import PPCA
        >>> x = np.random.RandomState(0).randn(50, 4)
        >>> found = gaps(PPCA(2).fit(x), x[:3])  # the guide is exact
        >>> bool(max(abs(found.approximation).max(), abs(found.amortization).max()) < 1e-3)
        True
    """
    choose("method", method, BOUNDED)
    checked_options(method, refine or {})
    if wrong := sorted((estimate or {}).keys() - ESTIMATE):
        raise OptionError(f"estimate: got the options {wrong}, expected some of {sorted(ESTIMATE)}")
    num_draws = whole("num_draws", num_draws, 2)
    options = {} if evidence == "ais" else {"num_draws": num_draws}
    found = log_evidence(vae, data, evidence, seed=seed, **(options | (estimate or {})))
    best = _bound(posterior(vae, data, method, num_draws=num_draws, seed=seed, **(refine or {})).log_weight)
    own = _bound(draws(vae, data, num_draws, seed=seed).log_weight)
    return Gaps(
        found.log_p - best[0],
        best[0] - own[0],
        np.hypot(found.mcse, best[1]),
        np.hypot(best[1], own[1]),
        found,
    )


def _bound(log_weight: Any) -> tuple[np.ndarray, np.ndarray]:
    """The mean of log weights (S, n) and its standard error, (n,) each."""
    values = log_weight.T.contiguous().cpu().numpy()
    return values.mean(1), values.std(1, ddof=1) / np.sqrt(values.shape[1])
