"""Objectives by name: factories of Pyro's ELBO objects, a fresh one each fit since they keep state."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import Tensor

from ppl_vae.errors import OptionError, choose
from ppl_vae.infer.draws import Facts
from ppl_vae.infer.importance import ImportanceWeighted


class Objective(NamedTuple):
    """How to fit.

    Attributes:
        make: particles to a Pyro ELBO.
        bound: "elbo" (mean of the log weights) or "iwae" (log of the mean weight), the bound per row that it raises.
        reparameterized: whether gradients go through the draws.
        weighs_kl: whether its KL term can be weighted.
        text: what it is, and its source.
        discrete: whether it can train a guide whose draws carry no gradient.
        shared: whether it allows latent sites that all rows share.
        enumerated: the same for programs with sites to sum out; None if it cannot.
        enumerates: whether it sums out the discrete sites of the guide.
        options: what `(name, options)` may set, with the defaults.
    """

    make: Callable[[int], ELBO]
    bound: str = "elbo"
    reparameterized: bool = True
    weighs_kl: bool = True
    text: str = ""
    discrete: bool = True
    shared: bool = True
    enumerated: Callable[[int], ELBO] | None = None
    enumerates: bool = False
    options: dict[str, float] = {}  # noqa: RUF012


def _options(particles: int) -> dict[str, Any]:
    return {"num_particles": particles, "vectorize_particles": particles > 1, "max_plate_nesting": 1}


def trace_elbo(particles: int) -> ELBO:
    """Pyro's `Trace_ELBO`."""
    return Trace_ELBO(**_options(particles))


def trace_enum_elbo(particles: int) -> ELBO:
    """Pyro's `TraceEnum_ELBO`: the bound of `Trace_ELBO`, sites marked for enumeration summed out exactly."""
    return TraceEnum_ELBO(**_options(particles))


def trace_mean_field_elbo(particles: int) -> ELBO:
    """Pyro's `TraceMeanField_ELBO`: KL terms in closed form where there is one."""
    return TraceMeanField_ELBO(**_options(particles))


def importance_weighted(particles: int) -> ELBO:
    """`ImportanceWeighted`; with one particle, the ELBO."""
    return ImportanceWeighted(**_options(particles))


OBJECTIVES: dict[str, Objective] = {
    "elbo": Objective(
        trace_elbo,
        enumerated=trace_enum_elbo,
        text="E_q[log p(x,z) - log q(z|x)], Monte Carlo (Kingma & Welling 2013, eq. 6)",
    ),
    "analytic_kl": Objective(
        trace_mean_field_elbo,
        discrete=False,
        text="the same bound with KL(q||p) in closed form where there is one (Kingma & Welling 2013, eq. 7)",
    ),
    "iwae": Objective(
        importance_weighted,
        bound="iwae",
        weighs_kl=False,
        discrete=False,
        shared=False,
        text="E[log mean of K weights] (Burda et al. 2016, eq. 8); with holes, MIWAE (Mattei & Frellsen 2019)",
    ),
    "score_function": Objective(
        trace_elbo,
        reparameterized=False,
        enumerated=trace_enum_elbo,
        text="the bound of elbo with the score-function gradient (Ranganath et al. 2014)",
    ),
    "enumerate": Objective(
        trace_enum_elbo,
        enumerated=trace_enum_elbo,
        enumerates=True,
        text="the bound of elbo, discrete sites of the guide summed out",
    ),
    "relaxation": Objective(
        trace_elbo,
        enumerated=trace_enum_elbo,
        text="the bound of elbo for programs whose discrete sites are relaxed (Maddison et al. 2017, eq. 8; "
        "Jang et al. 2017); held-out rows see the discrete ones",
        options={"temperature": 0.5},
    ),
}


def objectives() -> dict[str, Objective]:
    """The objectives that `fit` takes by name.

    Example:
        >>> sorted(objectives())
        ['analytic_kl', 'elbo', 'enumerate', 'iwae', 'relaxation', 'score_function']
    """
    return dict(OBJECTIVES)


def objective(choice: Any, particles: int = 1) -> Objective:
    """An objective from its name, from (name, options), or from a factory of any Pyro ELBO, a function of nothing."""
    if isinstance(choice, Objective):
        return choice
    if isinstance(choice, ELBO):
        raise OptionError(
            "objective: got an ELBO, which keeps state between fits; expected a factory, such as Trace_ELBO"
        )
    if callable(choice):
        if particles != 1:
            raise OptionError(f"particles: got {particles} with a factory of your own, expected them set inside it")
        return Objective(lambda particles: _elbo(choice), enumerated=lambda particles: _elbo(choice))
    name, options = choice if isinstance(choice, tuple | list) and len(choice) == 2 else (choice, {})
    chosen = choose("objective", name, OBJECTIVES)
    if not isinstance(options, dict) or options.keys() - chosen.options.keys():
        raise OptionError(f"objective: got {options!r} for {name!r}, expected options among {sorted(chosen.options)}")
    return chosen._replace(options=chosen.options | options)


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
            f"{known.discrete[0]!r}; expected 'elbo', 'score_function', 'enumerate' or 'relaxation'"
        )
    if known.shared and not target.shared:
        raise OptionError(
            f"objective: got {name!r}, whose weights are per row, with the site {known.shared[0]!r} that all rows share; "
            "expected 'elbo' or 'analytic_kl'"
        )
    if target.options.get("temperature") and "y" in (*known.discrete, *known.enumerated):
        raise OptionError(f"objective: got {name!r} with classes, which are known on some rows; expected 'enumerate'")
    if (target.enumerates or target.options.get("temperature")) and not (known.discrete or known.enumerated):
        raise OptionError(f"objective: got {name!r}, expected a guide with a discrete site")
    if known.enumerated or target.enumerates:
        return target._replace(make=target.enumerated or target.make, weighs_kl=False, enumerates=target.enumerates)
    return target


def _elbo(factory: Callable) -> ELBO:
    made = factory()
    if not isinstance(made, ELBO):
        raise OptionError(f"objective: got a factory of {made!r}, expected one of a Pyro ELBO, such as Trace_ELBO")
    return made


def elbo(log_weight: Tensor) -> Tensor:
    """The evidence lower bound per row: log weights (S, n) to their mean (n,)."""
    return log_weight.mean(0)


def iwae(log_weight: Tensor) -> Tensor:
    """The importance-weighted bound per row: log weights (S, n) to the log of the mean weight (n,)."""
    return torch.logsumexp(log_weight, 0) - math.log(len(log_weight))


BOUNDS: dict[str, Callable[[Tensor], Tensor]] = {"elbo": elbo, "iwae": iwae}
