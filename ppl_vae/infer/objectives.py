"""Objectives by name: factories of Pyro's ELBO objects, a fresh one each fit since they keep state."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from ppl_vae.errors import OptionError, choose


class Objective(NamedTuple):
    """How to fit.

    Attributes:
        make: particles to a Pyro ELBO.
        bound: "elbo" (mean of the log weights) or "iwae" (log of the mean weight), the bound per row that it raises.
        reparameterized: whether gradients go through the draws.
        weighs_kl: whether its KL term can be weighted.
        text: what it is, and its source.
    """

    make: Callable[[int], ELBO]
    bound: str = "elbo"
    reparameterized: bool = True
    weighs_kl: bool = True
    text: str = ""


def _options(particles: int) -> dict[str, Any]:
    return {"num_particles": particles, "vectorize_particles": particles > 1, "max_plate_nesting": 1}


def trace_elbo(particles: int) -> ELBO:
    """Pyro's `Trace_ELBO`."""
    return Trace_ELBO(**_options(particles))


def trace_mean_field_elbo(particles: int) -> ELBO:
    """Pyro's `TraceMeanField_ELBO`: KL terms in closed form where there is one."""
    return TraceMeanField_ELBO(**_options(particles))


def renyi_elbo(particles: int) -> ELBO:
    """Pyro's `RenyiELBO` at alpha = 0, per row since all sites share the plate "data"; with one particle, the ELBO."""
    return RenyiELBO(alpha=0.0, **_options(particles))


OBJECTIVES: dict[str, Objective] = {
    "elbo": Objective(trace_elbo, text="E_q[log p(x,z) - log q(z|x)], Monte Carlo (Kingma & Welling 2013, eq. 6)"),
    "analytic_kl": Objective(
        trace_mean_field_elbo, text="the same bound with KL(q||p) in closed form (Kingma & Welling 2013, eq. 7)"
    ),
    "iwae": Objective(
        renyi_elbo, bound="iwae", weighs_kl=False, text="E[log mean of K weights] (Burda et al. 2016, eq. 8)"
    ),
    "score_function": Objective(
        trace_elbo,
        reparameterized=False,
        text="the bound of elbo with the score-function gradient (Ranganath et al. 2014)",
    ),
}


def objectives() -> dict[str, Objective]:
    """The objectives that `fit` takes by name.

    Example:
        >>> sorted(objectives())
        ['analytic_kl', 'elbo', 'iwae', 'score_function']
    """
    return dict(OBJECTIVES)


def objective(choice: Any, particles: int = 1) -> Objective:
    """An objective from its name, or from a factory of any Pyro ELBO, a function of nothing."""
    if isinstance(choice, Objective):
        return choice
    if isinstance(choice, ELBO):
        raise OptionError(
            "objective: got an ELBO, which keeps state between fits; expected a factory, such as Trace_ELBO"
        )
    if callable(choice):
        if particles != 1:
            raise OptionError(f"particles: got {particles} with a factory of your own, expected them set inside it")
        return Objective(lambda particles: _elbo(choice))
    return choose("objective", choice, OBJECTIVES)


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
