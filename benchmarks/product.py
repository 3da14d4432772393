"""Every prior with every likelihood, posterior and objective, with and without missing cells: each trains or is refused.

    python benchmarks/product.py                   # all of it; goes on where it was stopped
    python benchmarks/product.py vamp flow         # some priors
    python benchmarks/product.py --processes 2     # priors side by side

60 rows of 3 columns that a common factor moves, 3 latent dimensions, one hidden layer of 8; 12 steps of Adam at 2e-2 on all
rows. Trained: `ppl_vae.testing.check_fit` (the bound rises by 3 standard errors, every parameter moves, all is finite; more
steps are tried before it is said not to). Refused: by an error of this library for a reason in `REASONS` that applies.
All else has failed: another exception, another reason, no training, and a refusal where no reason applies or training
where one does.

A line of `results/product/<prior>.jsonl` holds the six cells of one likelihood and posterior: the gain in nats a row and
the steps, or the reason. A line is kept for as long as its parts do what they did: its key is a digest of one fit of each.
"""

import argparse
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

import ppl_vae as pv
from ppl_vae.files import write_text
from ppl_vae.model.families import LIKELIHOODS
from ppl_vae.model.posteriors import POSTERIORS
from ppl_vae.model.priors import PRIORS
from ppl_vae.testing import EXAMPLES, check_fit
from ppl_vae.testing import SPACES as PARTS

RESULTS = Path(__file__).parent / "results" / "product"
ROWS, MISSING = 60, 0.2
SMALL_FLOW = {"transforms": 1, "flow_hidden": (8,)}


class Cell(NamedTuple):
    """One combination, by the names of its parts."""

    prior: str
    likelihood: str
    posterior: str
    objective: str = "elbo"
    holes: bool = False


# ---- the factors

PRIOR_OPTIONS: dict[str, dict[str, Any]] = {name: {} for name in PRIORS} | {
    "mixture": {"components": 3},
    "enumerated_mixture": {"components": 3},
    "vamp": {"components": 5},
    "flow": SMALL_FLOW,
    "conditional": {"prior_hidden": (8,), "covariates": ["age"]},
    "hierarchical": {"group": "site"},
}
POSTERIOR_OPTIONS: dict[str, dict[str, Any]] = {name: {} for name in POSTERIORS} | {
    "iaf": {**SMALL_FLOW, "context": 4},
    "spline_flow": {**SMALL_FLOW, "context": 4},
}
MIXED = {"a": "normal", "b": "negative_binomial", "c": "categorical"}
LIKELIHOOD_OPTIONS: dict[str, dict[str, Any]] = {name: {"likelihood": name} for name in LIKELIHOODS} | {
    "normal, feature": {"likelihood": "normal", "scale": "feature"},
    "normal, shared": {"likelihood": "normal", "scale": "shared"},
    "normal, fixed": {"likelihood": "normal", "scale": 0.5},
    "mixed": {"likelihood": MIXED},
}
OBJECTIVES = {"elbo": 1, "analytic_kl": 1, "iwae": 3}  # particles
FACTORS: tuple[list[Any], ...] = (
    list(PRIOR_OPTIONS),
    list(LIKELIHOOD_OPTIONS),
    list(POSTERIOR_OPTIONS),
    list(OBJECTIVES),
    [False, True],
)

# ---- data


@cache
def table(types: tuple[str, str, str], holes: bool) -> pd.DataFrame:
    """Columns a, b, c of these types, and age and site, a covariate and a group; with holes, the first row is all holes."""
    noise = np.random.default_rng(0)
    factor = noise.normal(size=(ROWS, 1)) * [1.0, -0.8, 0.6] + 0.5 * noise.normal(size=(ROWS, 3))
    hidden = noise.random((ROWS, 3)) < MISSING
    hidden[0] = True
    frame = pd.DataFrame(
        {name: EXAMPLES[kind].make(factor[:, j], noise) for j, (name, kind) in enumerate(zip("abc", types))}
    )
    if holes:
        frame = frame.mask(pd.DataFrame(hidden, columns=frame.columns))
    return frame.assign(age=factor[:, 0] + noise.normal(size=ROWS), site=noise.integers(0, 4, ROWS).astype(str))


def data(cell: Cell) -> pd.DataFrame:
    """The rows of a cell."""
    chosen = LIKELIHOOD_OPTIONS[cell.likelihood]["likelihood"]
    types = [LIKELIHOODS[chosen[c] if isinstance(chosen, dict) else chosen].type for c in "abc"]
    beside = {"conditional": ["age"], "hierarchical": ["site"]}.get(cell.prior, [])
    return table(tuple(types), cell.holes)[[*"abc", *beside]]  # type: ignore[arg-type]


# ---- what is refused

SPACES = {
    "logistic_normal": "simplex",
    "dirichlet": "simplex",
    "sphere": "sphere",
    "power_spherical": "sphere",
    "bernoulli": "bits",
    "categorical": "one-hot",
}


def apart(cell: Cell) -> bool:
    """Whether the posterior is off the prior's support. One-hot vectors are bits; a Vamp prior has its posterior's space."""
    prior, posterior = (SPACES.get(name, "reals") for name in (cell.prior, cell.posterior))
    return cell.prior != "vamp" and prior != posterior and (prior, posterior) != ("bits", "one-hot")


class Reason(NamedTuple):
    """When a cell has to be refused, and what the error then says."""

    applies: Callable[[Cell], bool]
    says: str


REASONS: dict[str, Reason] = {
    "prior and posterior on different spaces": Reason(apart, "no common measure|in the support of the prior's"),
    "Vamp prior of a point posterior": Reason(
        lambda cell: cell.prior == "vamp" and cell.posterior == "delta", "'vamp' with a point posterior"
    ),
    "no gradient through draws of a discrete site": Reason(
        lambda cell: cell.posterior in ("bernoulli", "categorical") and cell.objective != "elbo",
        "whose gradient goes through draws, with the discrete site 'z'",
    ),
    "objective does not sum out a site": Reason(
        lambda cell: cell.prior == "enumerated_mixture" and cell.objective != "elbo",
        "does not sum out the site 'component'",
    ),
    "weights per row, with a site that rows share": Reason(
        lambda cell: cell.prior in ("hierarchical", "horseshoe") and cell.objective == "iwae",
        "whose weights are per row, with the site",
    ),
    "joint family without marginals, with holes": Reason(
        lambda cell: cell.likelihood == "multinomial" and cell.holes, "got the likelihood RowMultinomial"
    ),
}


def reasons(cell: Cell) -> list[str]:
    """The reasons for which a cell has to be refused; of several any may be given."""
    return [name for name, reason in REASONS.items() if reason.applies(cell)]


# ---- running

Outcome = tuple[float, int] | str | dict[str, str]
"""Gain and steps where a cell trained; the reason of its refusal; {"failed": why}."""


def refused(cell: Cell, error: pv.PplVaeError) -> Outcome:
    """The reason that an error gives, or a failure if it is none that applies."""
    for name in reasons(cell):
        if re.search(REASONS[name].says, str(error)):
            return name
    return {"failed": f"{type(error).__name__}: {error}"}


def run(cells: list[Cell]) -> Iterator[Outcome]:
    """Outcomes of cells that differ in the objective alone: one model, its first weights put back each time."""
    prior, likelihood, posterior, _, holes = cells[0]
    options = {**PRIOR_OPTIONS[prior], **POSTERIOR_OPTIONS[posterior], **LIKELIHOOD_OPTIONS[likelihood]}
    options |= {"prior": prior, "posterior": posterior, "nullable": holes}
    rows = data(cells[0])
    try:
        vae = pv.build(rows, latent=3, hidden=(8,), **options)
    except pv.PplVaeError as error:
        yield from [refused(cell, error) for cell in cells]
        return
    except Exception as error:
        yield from [{"failed": f"build: {type(error).__name__}: {error}"}] * len(cells)
        return
    for cell in cells:
        yield _trained(vae, rows, cell)


def _trained(vae: Any, rows: pd.DataFrame, cell: Cell) -> Outcome:
    try:
        found = check_fit(vae, rows, cell.objective, particles=OBJECTIVES[cell.objective])
    except pv.NonFiniteError as error:
        return {"failed": f"not finite: {error}"}
    except pv.PplVaeError as error:
        return refused(cell, error)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    if expected := reasons(cell):
        return {"failed": f"trained, expected a refusal: {expected[0]}"}
    return float(found["gain"]), int(found["steps"])


def line(prior: str, likelihood: str, posterior: str) -> dict[str, Outcome]:
    """The six cells of three parts, by objective and whether there are holes."""
    found: dict[str, Outcome] = {}
    for holes in (False, True):
        cells = [Cell(prior, likelihood, posterior, objective, holes) for objective in OBJECTIVES]
        found |= {f"{c.objective}{', holes' * holes}": outcome for c, outcome in zip(cells, run(cells))}
    return found


PARTNERS = {SPACES.get(prior, "reals"): (prior, posterior) for prior, posterior in PARTS.items()}


@cache
def behaviour(*parts: str) -> str:
    """A digest of what three parts do: the outcomes of their cells."""
    return hashlib.sha256(json.dumps(line(*parts)).encode()).hexdigest()


@cache
def key(prior: str, likelihood: str, posterior: str) -> str:
    """A digest of what each part does beside others that it goes with."""
    of_prior = behaviour(prior, "normal", PARTNERS[SPACES.get(prior, "reals")][1])
    of_posterior = behaviour(PARTNERS[SPACES.get(posterior, "reals")][0], "normal", posterior)
    of_likelihood = behaviour("standard_normal", likelihood, "mean_field")
    return hashlib.sha256(f"{of_prior} {of_likelihood} {of_posterior}".encode()).hexdigest()[:12]


def kept(prior: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The lines of a prior's file, the last of each likelihood and posterior; one cut off in writing is dropped."""
    path, found = RESULTS / f"{prior}.jsonl", {}
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            one = json.loads(text)
        except json.JSONDecodeError:
            continue
        found[one["likelihood"], one["posterior"]] = one
    return found


def run_prior(prior: str) -> str:
    """Run the cells of a prior that are not kept, and keep each line as it is done."""
    torch.set_num_threads(1)
    have, path = kept(prior), RESULTS / f"{prior}.jsonl"
    write_text(path, _lines(have.values()))  # without a line that was cut off
    for likelihood in FACTORS[1]:
        for posterior in FACTORS[2]:
            now = key(prior, likelihood, posterior)
            if have.get((likelihood, posterior), {}).get("key") == now:
                continue
            began = time.perf_counter()
            cells = line(prior, likelihood, posterior)
            seconds = round(time.perf_counter() - began, 2)
            one = {"likelihood": likelihood, "posterior": posterior, "key": now, "cells": cells, "seconds": seconds}
            with path.open("a") as file:
                file.write(_lines([one]))
    final = kept(prior)  # once each, in order
    write_text(path, _lines(final[a, b] for a in FACTORS[1] for b in FACTORS[2]))
    return prior


def _lines(found: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(one) + "\n" for one in found)


def show() -> int:
    """Print the matrix of what is kept, and every failure; returns their number."""
    totals: Counter[str] = Counter()
    rows, failures = [], []
    for prior in FACTORS[0]:
        counts: Counter[str] = Counter()
        for (likelihood, posterior), one in kept(prior).items():
            for name, outcome in one["cells"].items():
                kind = "trained" if isinstance(outcome, list) else "refused" if isinstance(outcome, str) else "failed"
                counts[kind] += 1
                totals[outcome if isinstance(outcome, str) else kind] += 1
                if kind == "failed":
                    failures.append(f"{prior} | {likelihood} | {posterior} | {name}: {outcome['failed'][:300]}")
        rows.append({"prior": prior, **{kind: counts[kind] for kind in ("trained", "refused", "failed")}})
    rows.append({"prior": "all", **{k: sum(r[k] for r in rows) for k in ("trained", "refused", "failed")}})  # type: ignore[misc]
    print(pd.DataFrame(rows).to_markdown(index=False))
    print("\n" + "\n".join(f"{count:6d}  {what}" for what, count in totals.most_common()))
    print("\n".join(["", *failures]), flush=True)
    return len(failures)


def main() -> None:
    """Run what is asked for, then print all that is kept."""
    parser = argparse.ArgumentParser()
    parser.add_argument("priors", nargs="*", choices=[[], *FACTORS[0]], help="these only")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="run nothing")
    chosen = parser.parse_args()
    priors = [] if chosen.show else chosen.priors or FACTORS[0]
    if chosen.processes == 1:
        for prior in priors:
            print(run_prior(prior), flush=True)
    else:
        with ProcessPoolExecutor(chosen.processes) as pool:
            for prior in pool.map(run_prior, priors):
                print(prior, flush=True)
    raise SystemExit(bool(show()))


if __name__ == "__main__":
    main()
