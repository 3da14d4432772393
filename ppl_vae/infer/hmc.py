"""Hamiltonian Monte Carlo for many rows at once: every chain of every row is accepted or refused on its own."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae.infer import graphs
from ppl_vae.infer.noise import GAMMA, mix, uniforms

Terms = Callable[[Tensor], tuple[Tensor, Tensor]]
"""u (C, n, k) to log prior and log likelihood, each (C, n)."""

DIVERGENT = 1000.0
"""An error of the energy above which a trajectory counts as divergent."""
ACCEPT = 0.9
"""The acceptance that step sizes are tuned to: high, since a step size that is right on average fails in narrow places."""


class State(NamedTuple):
    """Where C chains of each of n rows are: u (C, n, k), both log densities (C, n), their gradients (C, n, k)."""

    u: Tensor
    log_prior: Tensor
    log_lik: Tensor
    grad_prior: Tensor
    grad_lik: Tensor

    def log_prob(self, beta: Tensor | float) -> Tensor:
        """Log prior + beta log likelihood, (C, n)."""
        return self.log_prior + beta * self.log_lik

    def grad(self, beta: Tensor | float) -> Tensor:
        """Its gradient, (C, n, k)."""
        weight = beta[:, None].to(self.u) if isinstance(beta, Tensor) else beta
        return self.grad_prior + weight * self.grad_lik


class Moved(NamedTuple):
    """A transition: the new state, acceptance probabilities (C, n), and whether the trajectory diverged (C, n)."""

    state: State
    accept: Tensor
    divergent: Tensor


def evaluate(terms: Terms, u: Tensor) -> State:
    """Densities and gradients at u. Those of a chain do not depend on others, so the gradient of the sum is all of them."""
    if isinstance(terms, Graphed):
        return terms.state(u)
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        log_prior, log_lik = terms(u)
        grad_prior, grad_lik = (
            torch.autograd.grad(t.sum(), u, retain_graph=True)[0] if t.requires_grad else torch.zeros_like(u)
            for t in (log_prior, log_lik)
        )
    return State(u.detach(), log_prior.detach(), log_lik.detach(), grad_prior, grad_lik)


class Graphed:
    """Terms that are evaluated at many u of one shape, by a graph where that pays.

    Args:
        terms: log prior and log likelihood.
        u: (C, n, k), any.
        calls: how often they will be evaluated, about.
    """

    def __init__(self, terms: Terms, u: Tensor, calls: int) -> None:
        self.terms = terms
        self.rest = graphs.repeated(lambda u: tuple(evaluate(terms, u))[1:], [u.detach()], calls)

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self.terms(u)

    def state(self, u: Tensor) -> State:
        """As `evaluate`."""
        return State(u.detach(), *self.rest(u.detach()))


def transition(
    terms: Terms, state: State, step: Tensor, scale: Tensor, leapfrogs: int, keys: Tensor, beta: Tensor | float = 1.0
) -> Moved:
    """One HMC transition (Neal 2011, section 5.3) towards prior x likelihood^beta.

    Args:
        terms: log prior and log likelihood.
        state: of C chains of n rows.
        step: step sizes (n,), jittered by up to 20 % each time, so that no orbit closes.
        scale: standard deviations of u (n, k): the momentum's are their inverse.
        leapfrogs: steps of a trajectory.
        keys: (n,) of this transition's noise.
        beta: power of the likelihood, (n,) or one for all.
    """
    chains, n, k = state.u.shape
    noise = uniforms(keys, chains, k + 2)
    momentum = torch.special.ndtri(noise[..., :k]).to(state.u)  # in units of the scale
    size = (step * (0.8 + 0.4 * noise[..., k]))[..., None].to(state.u) * scale.to(state.u)
    new, p = state, momentum
    for _ in range(leapfrogs):
        p = p + 0.5 * size * new.grad(beta)
        new = evaluate(terms, new.u + size * p)
        p = p + 0.5 * size * new.grad(beta)
    energy = new.log_prob(beta) - state.log_prob(beta) - 0.5 * (p.double() ** 2 - momentum.double() ** 2).sum(-1)
    energy = torch.where(energy.isfinite(), energy, -math.inf)
    accepted = torch.log(noise[..., k + 1]) < energy
    kept = State(*(torch.where(accepted.view(chains, n, *(1,) * (a.dim() - 2)), a, b) for a, b in zip(new, state)))
    return Moved(kept, energy.clamp(max=0).exp(), energy < -DIVERGENT)


def key_of(keys: Tensor, number: int) -> Tensor:
    """Keys (n,) of the noise of transition `number`."""
    return mix(keys + torch.tensor(2 * number + 1, device=keys.device) * GAMMA)


class StepSize:
    """Dual averaging of step sizes (n,), one a row, on the mean acceptance of its chains (Hoffman & Gelman 2014, 3.2)."""

    def __init__(self, step: Tensor, goal: float = ACCEPT) -> None:
        self.goal = goal
        self.restart(step)

    def restart(self, step: Tensor) -> None:
        """Begin anew at these step sizes."""
        self.centre, self.error, self.count = torch.log(10 * step), torch.zeros_like(step), 0
        self.log_step = self.log_mean = torch.log(step)

    def update(self, accept: Tensor) -> None:
        """Take note of acceptance probabilities (C, n)."""
        self.count += 1
        weight = 1 / (self.count + 10)
        self.error = (1 - weight) * self.error + weight * (self.goal - accept.mean(0))
        self.log_step = self.centre - math.sqrt(self.count) / 0.05 * self.error
        fade = self.count**-0.75
        self.log_mean = fade * self.log_step + (1 - fade) * self.log_mean

    @property
    def now(self) -> Tensor:
        """Step sizes while they are tuned."""
        return self.log_step.exp()

    @property
    def tuned(self) -> Tensor:
        """Step sizes to keep."""
        return self.log_mean.exp()


class Chains(NamedTuple):
    """What `sample` gives.

    Attributes:
        u: (C, T, n, k).
        accept: mean acceptance (n,).
        divergences: (n,) whole numbers, of the T transitions of C chains.
        step: step sizes (n,).
    """

    u: Tensor
    accept: Tensor
    divergences: Tensor
    step: Tensor


def sample(
    terms: Terms,
    start: Tensor,
    scale: Tensor,
    keys: Tensor,
    num_samples: int,
    warmup: int,
    leapfrogs: int = 8,
    first_step: float = 0.5,
) -> Chains:
    """C chains of each of n rows; step sizes and scales are tuned for each row in the warm-up, and then stay.

    Args:
        terms: log prior and log likelihood.
        start: u (C, n, k).
        scale: first standard deviations of u, (n, k).
        keys: (n,) of the rows' noise.
        num_samples: T kept of each chain.
        warmup: transitions before them; at two thirds of them the scales become the standard deviations of u met since the
            first third.
        leapfrogs: of each trajectory.
        first_step: step size to begin with.
    """
    terms = Graphed(terms, start, (warmup + num_samples) * leapfrogs)
    state, steps = evaluate(terms, start), StepSize(torch.full_like(scale[:, 0], first_step, dtype=torch.float64))
    met: list[Tensor] = []
    for number in range(warmup):
        moved = transition(terms, state, steps.now, scale, leapfrogs, key_of(keys, number))
        state = moved.state
        steps.update(moved.accept)
        if warmup <= 3 * number < 2 * warmup:
            met.append(state.u)
        elif met:
            spread = torch.stack(met).flatten(0, 1)
            scale = spread.std(0).clamp(min=1e-6 * float(scale.min())) if len(spread) > 2 else scale
            steps.restart(steps.tuned)
            met = []
    kept, accept, divergences = [], torch.zeros_like(steps.tuned), torch.zeros_like(keys)
    step = steps.tuned
    for number in range(warmup, warmup + num_samples):
        moved = transition(terms, state, step, scale, leapfrogs, key_of(keys, number))
        state = moved.state
        kept.append(state.u)
        accept += moved.accept.mean(0) / num_samples
        divergences += moved.divergent.sum(0)
    return Chains(torch.stack(kept, 1), accept, divergences, step)
