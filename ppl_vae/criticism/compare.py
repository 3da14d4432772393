"""`compare`: the same data, budget and measure for several models and ways to fit them; one table."""

import builtins
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ppl_vae.criticism import budget as budgets
from ppl_vae.criticism import cells
from ppl_vae.criticism.cells import Cell
from ppl_vae.criticism.comparison import Comparison
from ppl_vae.criticism.described import described
from ppl_vae.criticism.latent import ACTIVE, activity, prior_variance
from ppl_vae.criticism.refit import check_options as check_refit
from ppl_vae.criticism.refit import refitted
from ppl_vae.data.schema import Schema
from ppl_vae.data.tables import held_by
from ppl_vae.errors import DataError, OptionError, PplVaeError, ProgramError, choose, first_line, whole
from ppl_vae.infer.draws import Draws, each_block, facts, guided, row_keys, space, traces
from ppl_vae.infer.evidence import METHODS, Evidence, log_evidence
from ppl_vae.infer.evidence import checked_options as checked_evidence
from ppl_vae.infer.local import checked_options
from ppl_vae.infer.local import posterior as draw
from ppl_vae.infer.psis import k_hats
from ppl_vae.infer.rules import base
from ppl_vae.infer.scope import reading
from ppl_vae.infer.training import check_options as check_fit
from ppl_vae.infer.training import fit as train_model
from ppl_vae.model.mixed import Columnwise
from ppl_vae.progress import tqdm
from ppl_vae.versions import versions


class Candidate:
    """A model and a way to fit it.

    Args:
        make: seed to a fresh model. For an executor of processes it must be picklable: a function of a module, or a
            `functools.partial` of one.
        objective: as in `fit`; None: the model stays as it is made, as a closed-form fit or one from a file.
        posterior: how z is drawn for given rows, a method of `posterior` or (method, options); the bound is its ELBO. With
            an objective that trains no encoder "amortized" has none.
        fit: further options of `fit`, by name.

    Raises: OptionError for an option that `fit` does not have, or that `compare` gives it; for an unknown objective or
        posterior.

    Example:
        >>> Candidate(lambda seed: None, "iwae", particles=5).fit
        {'particles': 5}
    """

    def __init__(
        self, make: Callable[[int], Any], objective: Any = "elbo", posterior: Any = "amortized", **fit: Any
    ) -> None:
        if not callable(make) or isinstance(make, torch.nn.Module):
            raise OptionError(f"make: got {make!r:.200}, expected a function of a seed that returns a fresh model")
        known = signature(train_model).parameters.keys() - {
            "vae",
            "data",
            "objective",
            "seed",
            "progress",
            "checkpoint",
        }
        if wrong := sorted(fit.keys() - known):
            raise OptionError(f"candidate: got the fit options {wrong}, expected some of {sorted(known)}")
        if objective is not None:
            check_fit(objective=objective, **fit)
        checked_options(*_named("posterior", posterior), "posterior")
        self.make, self.objective, self.posterior, self.fit = make, objective, posterior, fit

    def __repr__(self) -> str:
        fit = "".join(f", {name}={value!r}" for name, value in self.fit.items())
        return f"Candidate({self.make!r}, {self.objective!r}, {self.posterior!r}{fit})"


def compare(
    candidates: Mapping[str, Candidate],
    train: Any,
    test: Any,
    *,
    seeds: Iterable[int] = (0, 1, 2),
    budget: dict[str, float] | None = None,
    evidence: Any = "ais",
    num_draws: int = 1000,
    map: Callable = builtins.map,
    folder: str | PathLike | None = None,
    retry: bool = False,
    progress: bool = True,
) -> Comparison:
    """Fit every candidate under every seed with one budget, and compare them by held-out log evidence (Wu et al. 2017).

    All are measured by one estimator on the same rows. "ais" and "refit" use no encoder of the fit, so that a model does
    not look better for its encoder; "iwae" and "psis" use it. Where a cell fails its reason is kept, and the others go on.
    A cell is a function of candidate, seed, data and options, but for a budget in seconds.

    Args:
        candidates: by name.
        train: rows that every candidate is fitted to.
        test: n other rows.
        seeds: each for the initial weights (`make`), the fit, and the noise of the evidence.
        budget: of each fit: {"gradients": g}, rows times draws whose log weight has a gradient taken, as many whole epochs
            as it holds, so let it hold many of the costliest; {"seconds": s} of the clock, epochs by the speed of a trial
            on a copy, stopped after the epoch in which the time runs out; None: the epochs of each candidate.
            Learning-rate schedules end with the budget.
        evidence: "ais", "refit", "iwae" or "psis", or (name, options): those of `log_evidence`, of "refit" also those of
            `refitted` (hidden, posterior, particles, epochs, ...).
        num_draws: draws of the candidate's posterior a row, for the bound, k-hat and active units.
        map: of any executor, such as `ProcessPoolExecutor().map`; results are the same.
        folder: where each cell is kept on its own, so that a comparison that was stopped goes on; None: nowhere. Functions
            among the options and parts of your own are known by their code and all that it reads, helpers and globals as
            they are when the comparison starts: where these have changed the cell runs again.
        retry: run cells again that failed and were kept.
        progress: show a bar.

    Returns: the `Comparison`: `.table`, `.cells`, `.plot()`, `.save(folder)`.

    Raises:
        DataError: rows that a candidate's model cannot read, before the first fit.
        OptionError: unknown names; candidates whose evidence is of other cells or another base measure (a density of
            `normal` against the probabilities of `poisson`).
        ModelFileError: a file of a cell in the folder that is damaged or of another origin; names it.

    Example:
        >>> from ppl_vae.model.linear import PPCA
        >>> x = np.random.RandomState(0).randn(60, 4) * [3, 2, 1, 1]
        >>> models = {f"q={q}": Candidate(lambda seed, q=q: PPCA(q).fit(x[:40]), objective=None) for q in (1, 2)}
        >>> found = compare(models, x[:40], x[40:], seeds=[0], evidence=("iwae", {"num_draws": 8}), progress=False)
        >>> list(found.table.index)
        ['q=2', 'q=1']
    """
    if not isinstance(candidates, Mapping) or not candidates:
        raise OptionError(f"candidates: got {candidates!r:.200}, expected {{name: Candidate(...)}}")
    for name, candidate in candidates.items():
        if not isinstance(name, str) or not isinstance(candidate, Candidate):
            raise OptionError(f"candidates: got {name!r}: {candidate!r:.200}, expected a name and a Candidate")
    if not isinstance(seeds, Iterable) or isinstance(seeds, str):
        raise OptionError(f"seeds: got {seeds!r}, expected a list of them, as [0, 1, 2]")
    seeds = [whole("seeds", seed, None) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise OptionError(f"seeds: got {seeds}, expected one or more, each once")
    budget = budgets.checked(budget)
    evidence = _named("evidence", evidence)
    choose("evidence", evidence[0], EVIDENCE)
    if wrong := sorted(evidence[1].keys() - OPTIONS[evidence[0]]):
        raise OptionError(
            f"evidence: got the options {wrong} with {evidence[0]!r}, expected some of {sorted(OPTIONS[evidence[0]])}"
        )
    for name, candidate in candidates.items():
        if budget is not None and "epochs" in candidate.fit:
            raise OptionError(
                f"candidate {name!r}: got epochs with a budget, which says how many; expected one of the two"
            )
    CHECKS[evidence[0]](**evidence[1])
    _check_measures(candidates, seeds[0], train, test, budget)
    digests = [cells.data_digest(data) for data in (train, test)] if folder is not None else []
    shared = Shared(
        train, test, budget, evidence, whole("num_draws", num_draws, 2), None if folder is None else Path(folder), digests,
        retry, torch.get_num_threads(),
    )  # fmt: skip
    common = {
        "evidence": evidence,
        "budget": budget,
        "seeds": seeds,
        "num_draws": num_draws,
        "versions": versions(),
    }
    settings = described(common)
    # once, before a fit changes what its callbacks read; and what no key can be made of is refused now
    fits = {name: None if folder is None else described(_fit_options(one)) for name, one in candidates.items()}
    tasks = [Task(name, one, seed, fits[name], shared) for name, one in candidates.items() for seed in seeds]
    bar = tqdm(map(run, tasks), total=len(tasks), disable=not progress, desc="compare", unit="cell")
    return Comparison(list(bar), settings)


class Shared(NamedTuple):
    """What all cells have in common: arguments of `compare`, digests of the data, and how many threads torch has."""

    train: Any
    test: Any
    budget: dict[str, float] | None
    evidence: tuple[str, dict[str, Any]]
    num_draws: int
    folder: Path | None
    digests: list[str]
    retry: bool
    threads: int


class Task(NamedTuple):
    """One cell to run; `fit` is the description of the candidate's options for its key, where there is one."""

    name: str
    candidate: Candidate
    seed: int
    fit: Any
    shared: Shared


def run(task: Task) -> Cell:
    """The cell of one candidate and seed: from its file where it has one, else by fitting it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(task.shared.threads)  # with another number matrix products round otherwise
    try:
        return _kept(task)
    finally:
        torch.set_num_threads(threads)


def _kept(task: Task) -> Cell:
    name, candidate, seed, _, shared = task
    try:
        vae = _made(candidate, seed)
        if candidate.objective is not None and int(getattr(vae, "steps", 0)):
            raise ProgramError(
                f"make: got a model fitted for {int(vae.steps)} steps, expected a fresh one for each seed"
            )
        key = _key(task, vae) if shared.folder is not None else ""
    except Exception as error:  # whatever a user's function may raise; without a model there is no key to keep it under
        return Cell(name, seed, {}, {}, _reason(error))
    if shared.folder is None:
        return _attempt(task, vae)
    path = cells.stem(shared.folder, name, seed, key)
    cell = cells.load(path, key)
    if cell is None or (shared.retry and cell.error is not None):
        cell = _attempt(task, vae)
        cells.save(path, key, cell)
    return cell


def _made(candidate: Candidate, seed: int) -> Any:
    vae = candidate.make(seed)
    if not isinstance(vae, torch.nn.Module) or not hasattr(vae, "batch"):
        raise ProgramError(f"make: got a {type(vae).__name__} for the seed {seed}, expected a model")
    return vae


def _key(task: Task, vae: Any) -> str:
    shared = task.shared
    return cells.key(
        {
            "candidate": task.name,
            "seed": task.seed,
            "model": cells.fingerprint(vae, shared.train),
            "fit": task.fit,
            "budget": shared.budget,
            "evidence": shared.evidence,
            "num_draws": shared.num_draws,
            "data": shared.digests,
        }
    )


def _fit_options(candidate: Candidate) -> dict[str, Any]:
    return {**candidate.fit, "objective": candidate.objective, "posterior": candidate.posterior}


def _attempt(task: Task, vae: Any) -> Cell:
    try:
        return _fitted(task, vae)
    except Exception as error:  # of any kind: the other cells go on, and the reason stands in the table
        return Cell(task.name, task.seed, {}, {}, _reason(error))


def _fitted(task: Task, vae: Any) -> Cell:
    name, candidate, seed, _, shared = task
    figures: dict[str, Any] = {
        "seconds": 0.0,
        "gradients": 0,
        "epochs": 0,
        "stopped": "",
        "num_draws": shared.num_draws,
    }
    if candidate.objective is not None:
        options = {**candidate.fit, "objective": candidate.objective, "seed": seed, "progress": False}
        history, gradients = budgets.fit_within(vae, shared.train, shared.budget, **options)
        seconds = float(history["seconds"][-1])
        figures |= {"seconds": seconds, "gradients": gradients, "epochs": len(history), "stopped": history.stopped}
    method, options = shared.evidence
    found = EVIDENCE[method](vae, shared, seed, options)
    bad = np.flatnonzero(~np.isfinite(found.log_p))
    if len(bad):
        raise PplVaeError(f"evidence: got {found.log_p[bad[0]]} of test row {bad[0]}, expected a finite log p(x)")
    bound, k_hat, active, latent = _own_posterior(task, vae, len(found.log_p))
    pointwise = {"log_p": found.log_p, "mcse": found.mcse, "doubtful": found.doubtful, "bound": bound, "k_hat": k_hat}
    as_doubles = {name: np.asarray(values, np.float64) for name, values in pointwise.items()}
    figures |= {"active": active, "latent": latent, "mcse": found.mean_mcse}
    return Cell(name, seed, figures, as_doubles)


def _own_posterior(task: Task, vae: Any, n: int) -> tuple[np.ndarray, np.ndarray, int | None, int]:
    """As `under_posterior`; nothing is known of a guide that no fit has trained."""
    if _named("posterior", task.candidate.posterior)[0] == "amortized" and not guided(vae):
        k = len(prior_variance(vae, vae.batch(task.shared.test), task.seed))
        return np.full(n, np.nan), np.full(n, np.nan), None, k
    return under_posterior(vae, task.shared.test, task.candidate.posterior, task.shared.num_draws, task.seed)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


# ---- evidence, by one estimator


def _own(method: str) -> Callable[..., Evidence]:
    """An estimate of `log_evidence` from the model as it is."""

    def estimate(vae: Any, shared: Shared, seed: int, options: dict[str, Any]) -> Evidence:
        return log_evidence(vae, _rows(shared.test), method, seed=seed, **options)

    estimate.__doc__ = METHODS[method].__doc__
    return estimate


def _rows(test: Any) -> Any:
    """Without the z that made them: whoever simulated these rows, other models are asked too."""
    return test if (x := held_by(test, "x")) is None else x


def _refit(vae: Any, shared: Shared, seed: int, options: dict[str, Any]) -> Evidence:
    """The K-draw bound under a fresh encoder, the same architecture for all candidates (Mattei & Frellsen 2018)."""
    drawn = {name: options[name] for name in options.keys() & {"num_draws"}}
    encoder = {name: value for name, value in options.items() if name not in drawn}
    return log_evidence(refitted(vae, shared.train, seed=seed, **encoder), shared.test, "iwae", seed=seed, **drawn)


EVIDENCE: dict[str, Callable[..., Evidence]] = {
    "ais": _own("ais"),
    "refit": _refit,
    "iwae": _own("iwae"),
    "psis": _own("psis"),
}


def _check_refit(num_draws: int | None = None, **options: Any) -> None:
    checked_evidence("iwae", num_draws)
    check_refit(**options)


CHECKS: dict[str, Callable[..., Any]] = {
    **{method: partial(checked_evidence, method) for method in ("ais", "iwae", "psis")},
    "refit": _check_refit,
}
"""Of the values of an estimator's options."""


OPTIONS: dict[str, set[str]] = {
    "ais": {"num_draws", "steps", "leapfrogs"},
    "refit": {"num_draws", *signature(refitted).parameters} - {"vae", "train", "seed"},
    "iwae": {"num_draws"},
    "psis": {"num_draws"},
}
"""Of each estimator."""


# ---- what the candidate's own posterior is like


def under_posterior(
    vae: Any, data: Any, posterior: Any, num_draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray, int | None, int]:
    """The bound (n,) and k-hat (n,) of q(z|x), how many of its latent units are active, and how many there are.

    Bound and k-hat are NaN for draws without log q, and for a point; active units are None for an ensemble, whose members
    have their own, and for one row, which does not vary.
    """
    batch = vae.batch(data)
    method, options = _named("posterior", posterior)
    if method == "amortized":  # some rows at a time
        parts = each_block(vae, batch, num_draws, seed, _read)
        worth: Any = num_draws
    else:
        drawn = draw(vae, data, method, num_draws, seed, **options)
        parts, worth = [_read(drawn)], _independent(drawn, num_draws, method)
    bound, k_hat, mean, variance = (torch.cat(column) for column in zip(*parts))
    active = None
    if len(mean) > 1 and not hasattr(vae, "members"):
        moved = activity(mean, variance, worth, prior_variance(vae, batch, seed)).values
        active = int((moved > ACTIVE).sum())
    if facts(vae, batch).point:
        bound, k_hat = torch.full_like(bound, torch.nan), torch.full_like(k_hat, torch.nan)
    return bound.cpu().numpy(), k_hat.cpu().numpy(), active, mean.shape[1]


def _independent(drawn: Draws, num_draws: int, method: str) -> Any:
    """How many independent draws of z these are worth: of chains by latent (n, k), of resampled ones by row (n, 1)."""
    ess = drawn.stats.get("ess")
    if ess is None:
        return num_draws
    worth = torch.as_tensor(ess.reshape(len(ess), -1)).clamp(min=1)
    return (
        1 / (1 / num_draws + 1 / worth) if method == "sir" else worth.clamp(max=num_draws)
    )  # drawn from what is worth so


def _read(block: Draws) -> tuple[torch.Tensor, ...]:
    """Of each row: bound, k-hat, mean and variance of z."""
    z = block.z.double()
    if block.log_weight is None:
        unknown = torch.full((z.shape[1],), torch.nan, dtype=z.dtype)
        return unknown, unknown, z.mean(0), z.var(0)
    log_weight = block.log_weight.T.contiguous().T  # along draws: what a row adds up to is the same wherever it stands
    return log_weight.mean(0), torch.from_numpy(k_hats(log_weight.cpu().numpy())), z.mean(0), z.var(0)


# ---- what can be compared


def _check_measures(
    candidates: Mapping[str, Candidate], seed: int, train: Any, test: Any, budget: dict[str, float] | None
) -> None:
    """Refuse data that a model cannot read, a budget that holds no epoch of its fit, and evidence of other cells or another
    base measure than the first one's."""
    measures = {}
    for name, candidate in candidates.items():
        try:
            vae = _made(candidate, seed)
        except Exception:  # whatever a user's function may raise; it will fail in its cells, with the reason
            continue
        for part, data in (("train", train), ("test", _rows(test))):
            try:
                vae.batch(data)
            except PplVaeError as error:
                raise DataError(f"candidate {name!r}, {part}: {first_line(error)}") from error
        if candidate.objective is not None:
            try:
                budgets.check(vae, train, budget, {**candidate.fit, "objective": candidate.objective})
            except OptionError as error:
                raise OptionError(f"candidate {name!r}: {error}") from error
        try:
            measures[name] = measure(vae, test)
        except Exception:  # as above
            continue
    for name, of in measures.items():
        first = next(iter(measures))
        for column in dict.fromkeys([*measures[first], *of]):
            ours, theirs = of.get(column, "nothing"), measures[first].get(column, "nothing")
            if ours != theirs:
                raise OptionError(
                    f"candidates: got {name!r}, with {ours} of the column {column!r}, and {first!r}, with {theirs}; "
                    "expected one measure of the same cells: evidence in other units cannot be compared"
                )


def measure(vae: Any, data: Any) -> dict[str, str]:
    """What p(x) is of each column: "a density" or "a probability"; labels are one more column."""
    vae = vae.members[0] if hasattr(vae, "members") else vae
    few = vae.batch(data).rows(slice(2))
    schema = vae.schema or Schema.of(data)
    with reading(vae):
        _, model = traces(vae, few, row_keys(few, 0), 1, strict=False)
    entries = base(model["x"]["fn"])
    parts = zip(entries.parts, entries.split_columns()) if isinstance(entries, Columnwise) else [(entries, slice(None))]
    kinds = np.empty(schema.width, dtype=object)
    for family, columns in parts:
        kinds[columns] = "a probability" if space(family) == "probability mass" else "a density"
    label = {} if schema.label is None else {schema.label.name: "a probability"}
    return dict(zip(schema.names, kinds)) | label


def _named(what: str, choice: Any) -> tuple[str, dict[str, Any]]:
    """A name, or (name, options), as the two."""
    name, options = choice if isinstance(choice, tuple | list) and len(choice) == 2 else (choice, {})
    if not isinstance(name, str) or not isinstance(options, dict):
        raise OptionError(f"{what}: got {choice!r}, expected a name or (name, options)")
    return name, options
