"""Objectives by name: factories of ELBO objects, Pyro's and our own, a fresh one each fit since they keep state."""

from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, NamedTuple

from pyro.infer import (
    ELBO,
    EnergyDistance,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    Trace_MMD,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)
from torch import Tensor

from ppl_vae.errors import OptionError, choose, number, whole
from ppl_vae.infer import bounds, pathwise, score_function, wake_sleep
from ppl_vae.infer.bounds import BOUNDS, grouped
from ppl_vae.infer.draws import Facts
from ppl_vae.infer.elbo import TensorELBO, detached, leaf
from ppl_vae.infer.free_bits import FreeBits
from ppl_vae.infer.importance import AnalyticKL, ByWeights, through_draws
from ppl_vae.infer.mcem import MonteCarloEM
from ppl_vae.infer.mmd import MMD
from ppl_vae.infer.optim import constant

Make = Callable[[int], ELBO]


class Objective(NamedTuple):
    """How to fit.

    Attributes:
        make: particles to a Pyro ELBO.
        bound: "elbo" (mean of the log weights) or "iwae" (log of the mean weight), the bound per row by which a history
            judges it: the one that it raises, or the closest to it.
        reparameterized: whether gradients go through the draws.
        weighs_kl: whether its KL term can be weighted.
        text: what it is, and its source.
        discrete: whether it can train a guide whose draws carry no gradient.
        shared: whether it allows latent sites that all rows share.
        enumerated: the same for programs with sites to sum out; None if it cannot.
        enumerates: whether it sums out the discrete sites of the guide.
        options: what `(name, options)` may set, with the values set.
        per_row: whether it is a sum over rows; else it judges a batch as a whole, and depends on its size.
        least: fewest particles.
        groups: of particles, over whose bounds it is the mean.
        kl_weight: weight of the KL term at a share of the fit, 0 to 1; times that of a warm-up.
        trains_guide: whether it trains the guide; a history has no bound without.
        keeps: whether it keeps a state for each row, whose cells then have to stay as they are.
        tensors: particles to the same objective in tensors alone, where `make` gives one of Pyro's that is not.
        tells_rows: whether it is known to be a sum over rows; of a user's own ELBO nothing is.
    """

    make: Make
    bound: str = "elbo"
    reparameterized: bool = True
    weighs_kl: bool = True
    text: str = ""
    discrete: bool = True
    shared: bool = True
    enumerated: Make | None = None
    enumerates: bool = False
    options: dict[str, Any] = {}  # noqa: RUF012
    per_row: bool = True
    least: int = 1
    groups: int = 1
    kl_weight: Callable[[float], float] = constant
    trains_guide: bool = True
    keeps: bool = False
    tensors: Callable[[int], TensorELBO] | None = None
    tells_rows: bool = True

    @property
    def needs(self) -> str:
        """What it needs of guide, programs and particles, in words."""
        conditions = {
            "draws with a gradient": not self.discrete,
            "a guide with a density": not self.reparameterized,
            "no latent sites that all rows share": not self.shared,
            f"at least {self.least} particles": self.least > 1,
            "large batches": not self.per_row,
            "rows that stay as they are": self.keeps,
        }
        return ", ".join(condition for condition, holds in conditions.items() if holds)

    def traceable(self, particles: int) -> TensorELBO | None:
        """The objective as one of whose steps a graph can be made; None if it has none."""
        elbo = (self.tensors or self.make)(particles)
        return elbo if isinstance(elbo, TensorELBO) and elbo.traceable else None

    def per_row_bound(self, log_weight: Tensor) -> Tensor:
        """The bound of each row: log weights (S, n) to (n,)."""
        return grouped(BOUNDS[self.bound], self.groups)(log_weight)


# ---- Pyro's own


def pyros(kind: type[ELBO]) -> Make:
    """A class of Pyro's ELBOs as a function of particles."""

    def make(particles: int) -> ELBO:
        return kind(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1)

    return make


trace_elbo, trace_enum_elbo = pyros(Trace_ELBO), pyros(TraceEnum_ELBO)


# ---- our own, by row


def tensor_elbo(particles: int) -> TensorELBO:
    """`trace_elbo` in tensors alone."""
    return ByWeights(through_draws(bounds.elbo), particles)


PER_ROW: dict[str, Any] = {"weighs_kl": False, "shared": False}
"""What holds of objectives whose weights are the rows' own and enter in another way than by their mean."""


def renyi(*, alpha: float = 0.5) -> Objective:
    if (alpha := number("alpha", alpha, -inf)) == 1:
        raise OptionError("alpha: got 1, where Rényi's bound is the ELBO, expected another number; use 'elbo'")
    bound = through_draws(partial(bounds.renyi, alpha=alpha))
    return Objective(
        partial(ByWeights, bound),
        bound="iwae",
        discrete=False,
        options={"alpha": alpha},
        text="log mean w^(1 - alpha) / (1 - alpha) of K weights (Li & Turner 2016); alpha 0 is iwae, 1 would be elbo",
        **PER_ROW,
    )


def mean_iwae(*, groups: int = 8) -> Objective:
    groups = whole("groups", groups)
    bound = through_draws(grouped(bounds.iwae, groups))
    return Objective(
        lambda particles: ByWeights(bound, groups * particles),
        bound="iwae",
        discrete=False,
        groups=groups,
        options={"groups": groups},
        text="mean of iwae over groups of K particles each (MIWAE of Rainforth et al. 2018)",
        **PER_ROW,
    )


def sticking_the_landing(*, bound: str = "elbo") -> Objective:
    estimate = choose("bound", bound, STICKING)
    return Objective(
        lambda particles: ByWeights(estimate, particles, leaf),
        bound=bound,
        weighs_kl=bound == "elbo",
        discrete=False,
        shared=False,
        options={"bound": bound},
        text="the bound of elbo without the score of q in its gradient (Roeder et al. 2017); bound=iwae: biased if K > 1",
    )


STICKING = {"elbo": pathwise.sticking_the_landing, "iwae": pathwise.sticking_the_landing_iwae}


def score(*, baseline: str = "none") -> Objective:
    make, least = choose("baseline", baseline, BASELINES)
    plain = baseline == "none"
    return Objective(
        make,
        reparameterized=False,
        enumerated=trace_enum_elbo if plain else None,
        shared=plain,
        least=least,
        options={"baseline": baseline},
        text="the bound of elbo with the score-function gradient (Ranganath et al. 2014); baseline=none, leave_one_out "
        "(Kool et al. 2019) or decaying (Mnih & Gregor 2014)",
    )


BASELINES: dict[str, tuple[Make, int]] = {
    "none": (trace_elbo, 1),
    "leave_one_out": (lambda particles: ByWeights(score_function.leave_one_out, particles, detached), 2),
    "decaying": (lambda particles: ByWeights(score_function.Decaying(), particles, detached), 1),
}


def mcem(*, leapfrogs: int = 10, updates: int = 5) -> Objective:
    leapfrogs, updates = whole("leapfrogs", leapfrogs), whole("updates", updates)
    return Objective(
        lambda particles: MonteCarloEM(particles, leapfrogs, updates),
        discrete=False,
        trains_guide=False,
        keeps=True,
        options={"leapfrogs": leapfrogs, "updates": updates},
        text="Monte Carlo EM: model by log p(x, z) at draws of p(z|x) by HMC, a chain for each row; no guide (Kingma & "
        "Welling 2013, appendix E)",
        **PER_ROW,
    )


# ---- the ELBO with another weight of its KL term, or another term in its place


def beta(*, beta: float = 4.0) -> Objective:
    beta = number("beta", beta, inclusive=True)
    return Objective(
        trace_elbo,
        tensors=tensor_elbo,
        kl_weight=lambda progress: beta,
        options={"beta": beta},
        text="elbo with its KL term times beta (Higgins et al. 2017)",
    )


def cyclic(*, cycles: int = 4, share: float = 0.5) -> Objective:
    cycles, share = whole("cycles", cycles), number("share", share)
    if share > 1:
        raise OptionError(f"share: got {share!r}, expected a share of a cycle in (0, 1]")

    def weight(progress: float) -> float:
        done = min(int(progress * cycles), cycles - 1)
        return min(1.0, (progress * cycles - done) / share)

    return Objective(
        trace_elbo,
        tensors=tensor_elbo,
        kl_weight=weight,
        options={"cycles": cycles, "share": share},
        text="elbo whose KL term rises from 0 to 1 over a share of each of some cycles (Fu et al. 2019, eqs. 6 and 7)",
    )


def free_bits(*, bits: float = 0.25) -> Objective:
    bits = number("bits", bits, inclusive=True)
    return Objective(
        lambda particles: FreeBits(particles, bits),
        discrete=False,
        per_row=False,
        options={"bits": bits},
        text="elbo with at least `bits` nats as the KL term of each dimension, a batch (Kingma et al. 2016, C.8)",
        **PER_ROW,
    )


def mmd(*, alpha: float = 0.0, lam: float = 10.0) -> Objective:
    alpha, lam = number("alpha", alpha, -inf), number("lam", lam, -inf)
    return Objective(
        lambda particles: MMD(particles, alpha, lam),
        discrete=False,
        per_row=False,
        options={"alpha": alpha, "lam": lam},
        text="InfoVAE: KL term times 1 - alpha, and alpha + lam - 1 times the distance of aggregate posterior and prior "
        "(Zhao et al. 2019, eq. 6)",
        **PER_ROW,
    )


def relaxation(*, temperature: float = 0.5) -> Objective:
    return Objective(
        trace_elbo,
        enumerated=trace_enum_elbo,
        tensors=tensor_elbo,
        text="the bound of elbo for programs whose discrete sites are relaxed (Maddison et al. 2017, eq. 8; "
        "Jang et al. 2017); held-out rows see the discrete ones",
        options={"temperature": number("temperature", temperature)},
    )


FACTORIES: dict[str, Callable[..., Objective]] = {
    "elbo": partial(
        Objective,
        trace_elbo,
        enumerated=trace_enum_elbo,
        tensors=tensor_elbo,
        text="E_q[log p(x,z) - log q(z|x)], Monte Carlo (Kingma & Welling 2013, eq. 6)",
    ),
    "analytic_kl": partial(
        Objective,
        pyros(TraceMeanField_ELBO),
        discrete=False,
        tensors=AnalyticKL,
        text="the same bound with KL(q||p) in closed form where there is one (Kingma & Welling 2013, eq. 7)",
    ),
    "sticking_the_landing": sticking_the_landing,
    "iwae": partial(
        Objective,
        partial(ByWeights, through_draws(bounds.iwae)),
        bound="iwae",
        discrete=False,
        text="E[log mean of K weights] (Burda et al. 2016, eq. 8); with holes, MIWAE (Mattei & Frellsen 2019)",
        **PER_ROW,
    ),
    "dreg": partial(
        Objective,
        lambda particles: ByWeights(pathwise.doubly_reparameterized, particles, leaf),
        bound="iwae",
        discrete=False,
        text="the bound of iwae, doubly reparameterised (Tucker et al. 2019): its gradient to the guide does not drown in "
        "noise as K grows",
        **PER_ROW,
    ),
    "mean_iwae": mean_iwae,
    "renyi": renyi,
    "reweighted_wake_sleep": partial(
        Objective,
        lambda particles: ByWeights(wake_sleep.reweighted, particles, detached),
        bound="iwae",
        reparameterized=False,
        least=2,
        text="model by iwae, guide by the posterior's mean of log q, both by the K weights of each row (Bornschein & Bengio "
        "2015)",
        **PER_ROW,
    ),
    "wake_sleep": partial(
        Objective,
        wake_sleep.WakeSleep,
        reparameterized=False,
        text="model by E_q[log p(x,z)], guide by log q(z|x) at rows that the model dreams (Hinton et al. 1995)",
        **PER_ROW,
    ),
    "mcem": mcem,
    "vimco": partial(
        Objective,
        lambda particles: ByWeights(score_function.vimco, particles, detached),
        bound="iwae",
        reparameterized=False,
        least=2,
        text="the bound of iwae with the score-function gradient, each draw against the others (Mnih & Rezende 2016)",
        **PER_ROW,
    ),
    "score_function": score,
    "trace_graph": partial(
        Objective,
        pyros(TraceGraph_ELBO),
        text="the bound of elbo; a discrete draw answers for what depends on it alone (Schulman et al. 2015)",
    ),
    "enumerate": partial(
        Objective,
        trace_enum_elbo,
        enumerated=trace_enum_elbo,
        enumerates=True,
        text="the bound of elbo, discrete sites of the guide summed out, by Pyro (Obermeyer et al. 2019)",
    ),
    "relaxation": relaxation,
    "beta": beta,
    "cyclic": cyclic,
    "free_bits": free_bits,
    "mmd": mmd,
}

OBJECTIVES: dict[str, Objective] = {name: factory() for name, factory in FACTORIES.items()}


def objectives() -> dict[str, Objective]:
    """The objectives that `fit` takes by name, each with what it needs.

    Returns: {name: `Objective`}.

    Example:
        >>> sorted(objectives())
        ['analytic_kl', 'beta', 'cyclic', 'dreg', 'elbo', 'enumerate', 'free_bits', 'iwae', 'mcem', 'mean_iwae', 'mmd',
         'relaxation', 'renyi', 'reweighted_wake_sleep', 'score_function', 'sticking_the_landing', 'trace_graph',
         'vimco', 'wake_sleep']
        >>> objectives()["vimco"].needs
        'a guide with a density, no latent sites that all rows share, at least 2 particles'
    """
    return dict(OBJECTIVES)


SECOND = "whose graph fails from the second step of a fit on; expected {}"
REFUSED: dict[type, str] = {
    ReweightedWakeSleep: "whose weights are of the whole batch at once; expected 'reweighted_wake_sleep', each row's own",
    TraceTailAdaptive_ELBO: "whose weights are of the whole batch at once; expected 'renyi' or 'iwae', each row's own",
    EnergyDistance: "which compares the whole batch as one point, and reads no mask; expected 'elbo'",
    Trace_MMD: "which compares the whole batch as one point; expected 'mmd', which compares its rows",
    JitTrace_ELBO: SECOND.format("'elbo' with compiled=True, whose graph is of whole steps"),
    JitTraceMeanField_ELBO: SECOND.format("'analytic_kl' with compiled=True, whose graph is of whole steps"),
    JitTraceGraph_ELBO: SECOND.format("'trace_graph'; compiled=True makes graphs of 'elbo' and others of ours"),
    JitTraceEnum_ELBO: SECOND.format("'enumerate'; compiled=True makes graphs of 'elbo' and others of ours"),
}
"""Pyro's objectives that take a batch for one observation, or cannot be fitted by steps, and what to use instead."""


def objective(choice: Any, particles: int | None = None) -> Objective:
    """An objective from its name, from (name, options), or from a factory of any Pyro ELBO, a function of nothing.

    Args:
        particles: K, to be checked; None: not yet known.

    Raises: OptionError that names the option.
    """
    if isinstance(choice, Objective):
        return choice
    if isinstance(choice, ELBO):
        raise OptionError(
            "objective: got an ELBO, which keeps state between fits; expected a factory, such as Trace_ELBO"
        )
    if callable(choice):
        if particles not in (None, 1):
            raise OptionError(f"particles: got {particles} with a factory of your own, expected them set inside it")
        if isinstance(choice, type):
            _refuse(choice)
        return Objective(lambda particles: _elbo(choice), enumerated=lambda particles: _elbo(choice), tells_rows=False)
    name, options = choice if isinstance(choice, tuple | list) and len(choice) == 2 else (choice, {})
    known = choose("objective", name, OBJECTIVES).options
    if not isinstance(options, dict) or options.keys() - known.keys():
        raise OptionError(f"objective: got {options!r} for {name!r}, expected options among {sorted(known)}")
    chosen = FACTORIES[name](**options)
    if particles is not None and particles < chosen.least:
        raise OptionError(f"particles: got {particles} with {choice!r}, expected at least {chosen.least}")
    return chosen


def fitting(target: Objective, choice: Any, known: Facts) -> Objective:
    """The objective as these programs need it.

    Raises: OptionError that names the objective, the site and the reason where it would be wrong for them.
    """
    name = choice[0] if isinstance(choice, tuple | list) else choice
    if known.enumerated and target.enumerated is None:
        raise OptionError(
            f"objective: got {name!r}, which does not sum out the site {known.enumerated[0]!r}; "
            "expected 'elbo' or 'enumerate'"
        )
    if known.discrete and not target.discrete:
        raise OptionError(
            f"objective: got {name!r}, whose gradient goes through draws, with the discrete site "
            f"{known.discrete[0]!r}; expected {_suiting(known)}"
        )
    if known.shared and not target.shared:
        raise OptionError(
            f"objective: got {name!r}, whose weights are per row, with the site {known.shared[0]!r} that all rows share; "
            f"expected {_suiting(known)}"
        )
    if target.options.get("temperature") and "y" in (*known.discrete, *known.enumerated):
        raise OptionError(f"objective: got {name!r} with classes, which are known on some rows; expected 'enumerate'")
    if (target.enumerates or target.options.get("temperature")) and not (known.discrete or known.enumerated):
        raise OptionError(f"objective: got {name!r}, expected a guide with a discrete site")
    if known.enumerated or target.enumerates:
        make = target.enumerated or target.make
        return target._replace(make=make, tensors=None, weighs_kl=False, enumerates=target.enumerates)
    if known.discrete and not target.options.get("temperature"):  # Pyro's go over to the score function there
        return target._replace(tensors=None)
    return target


def _suiting(known: Facts) -> str:
    """The names of the objectives that would do for such programs."""
    discrete = {*known.discrete, *known.enumerated}

    def suits(objective: Objective) -> bool:
        relaxes = bool(objective.options.get("temperature"))
        return (
            (objective.discrete or not known.discrete)
            and (objective.enumerated is not None or not known.enumerated)
            # what all rows share may have no draws without a gradient, as a scale of groups
            and ((objective.shared and objective.reparameterized) or not known.shared)
            and (bool(discrete) or not (relaxes or objective.enumerates))
            and not (relaxes and "y" in discrete)
        )

    return " or ".join(", ".join(repr(n) for n, o in OBJECTIVES.items() if suits(o)).rsplit(", ", 1))


def _refuse(kind: type) -> None:
    for refused, reason in REFUSED.items():
        if issubclass(kind, refused):
            raise OptionError(f"objective: got {kind.__name__}, {reason}")


def _elbo(factory: Callable) -> ELBO:
    made = factory()
    _refuse(type(made))
    if not isinstance(made, ELBO):
        raise OptionError(f"objective: got a factory of {made!r}, expected one of a Pyro ELBO, such as Trace_ELBO")
    return made
