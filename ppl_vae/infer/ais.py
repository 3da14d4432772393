"""Annealed importance sampling (Neal 2001) from prior to posterior, each row on a path of its own, and its reverse.

A first, shorter run of a few chains tunes each row's path: temperatures so spaced that every step costs the same variance
(Gelman & Meng 1998, section 4), scales and step sizes of HMC along it. The run that counts then holds all of these fixed, so
that its mean weight has the expectation p(x) exactly.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_vae.infer.hmc import Graphed, State, Terms, evaluate, key_of, transition

PILOTS, ACCEPT, SMOOTH = 16, 0.7, 5
"""Chains of the first run; the acceptance it tunes to; temperatures over which its standard deviations are averaged."""


class Path(NamedTuple):
    """How to go from prior to posterior in T steps.

    Attributes:
        beta: powers of the likelihood (T + 1, n), from 0 to 1.
        step: step sizes (T, n) of the transition at each new temperature.
        scale: standard deviations of u there, (T, n, k).
        leapfrogs: of each trajectory.
    """

    beta: Tensor
    step: Tensor
    scale: Tensor
    leapfrogs: int


def tuned(terms: Terms, start: Tensor, keys: Tensor, steps: int, leapfrogs: int) -> Path:
    """A path of `steps` temperatures, from a run of a few chains through a quarter as many.

    Args:
        terms: log prior and log likelihood.
        start: draws of u (P, n, k) from the prior.
        keys: (n,) of this run's noise.
    """
    few, n = max(steps // 4, 10), start.shape[1]
    terms = Graphed(terms, start, few * leapfrogs)
    beta = torch.linspace(0, 1, few + 1, dtype=torch.float64) ** 4
    state, log_step = evaluate(terms, start), torch.full((n,), math.log(0.3), dtype=torch.float64)
    spreads, sizes, scales = [state.log_lik.std(0)], [], []
    for t in range(1, few + 1):
        scale = state.u.std(0).clamp(min=1e-4)
        moved = transition(terms, state, log_step.exp(), scale, leapfrogs, key_of(keys, t), beta[t].expand(n))
        state = moved.state
        log_step = log_step + 0.5 * (moved.accept.mean(0) - ACCEPT)
        spreads.append(state.log_lik.std(0))
        sizes.append(log_step)
        scales.append(scale)
    # equal steps of the length  int sd_beta(log p(x|z)) d beta
    spread = torch.stack(spreads)
    length = torch.cat([torch.zeros(1, n), ((spread[1:] + spread[:-1]) / 2 * beta.diff()[:, None]).cumsum(0)])
    length = length / length[-1].clamp(min=1e-30) + 1e-3 * beta[:, None]  # and no step too long where no chain moved
    goals = torch.linspace(0, 1, steps + 1, dtype=torch.float64)[:, None] * length[-1]
    path = _interpolated(goals, length, beta[:, None].expand(-1, n))
    path[0], path[-1] = 0.0, 1.0
    where = path[1:]
    grid = beta[1:, None].expand(-1, n)
    scale = _averaged(torch.stack(scales))
    position = (torch.searchsorted(grid.T.contiguous(), where.T.contiguous()).T).clamp(max=few - 1)
    return Path(
        path,
        _interpolated(where, grid, torch.stack(sizes)).exp(),
        torch.gather(scale, 0, position[..., None].expand(-1, -1, scale.shape[-1])),
        leapfrogs,
    )


def forward(terms: Terms, start: Tensor, keys: Tensor, path: Path) -> Tensor:
    """Log weights (S, n) of chains that start at draws u (S, n, k) from the prior: the mean weight estimates p(x)."""
    terms = Graphed(terms, start, len(path.step) * path.leapfrogs)
    state = evaluate(terms, start)
    log_weight = torch.zeros_like(state.log_lik)
    for t in range(len(path.step)):
        log_weight += (path.beta[t + 1] - path.beta[t]) * state.log_lik
        state = _moved(terms, state, keys, path, t)
    return log_weight


def backward(terms: Terms, start: Tensor, keys: Tensor, path: Path) -> Tensor:
    """Log weights (S, n) of chains that start at u (S, n, k) from the posterior: the mean of 1/weight estimates 1/p(x).

    Bidirectional Monte Carlo (Grosse et al. 2016): each transition is its own reverse, so they run in the opposite order.
    """
    terms = Graphed(terms, start, len(path.step) * path.leapfrogs)
    state = evaluate(terms, start)
    log_weight = torch.zeros_like(state.log_lik)
    for t in reversed(range(len(path.step))):
        state = _moved(terms, state, keys, path, t)
        log_weight += (path.beta[t + 1] - path.beta[t]) * state.log_lik
    return log_weight


def _moved(terms: Terms, state: State, keys: Tensor, path: Path, t: int) -> State:
    noise = key_of(keys, t + 1)
    return transition(terms, state, path.step[t], path.scale[t], path.leapfrogs, noise, path.beta[t + 1]).state


def _averaged(values: Tensor) -> Tensor:
    """Over neighbours along the first dimension (T, n, k)."""
    half = SMOOTH // 2
    padded = torch.cat([values[:1].expand(half, -1, -1), values, values[-1:].expand(half, -1, -1)])
    return padded.unfold(0, SMOOTH, 1).mean(-1)


def _interpolated(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Piecewise linear y(at) of columns: at (A, n), increasing x (B, n), y (B, n) to (A, n)."""
    upper = torch.searchsorted(x.T.contiguous(), at.T.contiguous()).T.clamp(1, len(x) - 1)
    x0, x1 = x.gather(0, upper - 1), x.gather(0, upper)
    share = ((at - x0) / (x1 - x0).clamp(min=1e-30)).clamp(0, 1)
    return y.gather(0, upper - 1) * (1 - share) + y.gather(0, upper) * share
