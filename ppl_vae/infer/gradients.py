"""How much of an estimator's gradient is signal: its mean and variance under many noises, for given rows."""

import warnings
from math import inf, nan, sqrt
from typing import Any, NamedTuple

import torch
from pyro.infer import config_enumerate
from torch import Tensor

from ppl_vae.errors import whole
from ppl_vae.infer.draws import batch_of, check, facts
from ppl_vae.infer.handlers import surroundings
from ppl_vae.infer.noise import step_keys
from ppl_vae.infer.objectives import fitting
from ppl_vae.infer.objectives import objective as chosen_objective
from ppl_vae.infer.scope import in_mode, isolated

GROUPS = 10
"""Groups of repeats, by whose differences the errors of variances are judged."""


class Part(NamedTuple):
    """The gradient to one part of a model.

    Attributes:
        norm: length of the mean gradient, what noise adds to it taken off.
        variance: trace of the covariance of one gradient.
        snr: signal to noise, norm / sqrt(variance); infinite without noise, NaN without a gradient.
        variance_error, snr_error: their standard errors, by the jackknife over groups of repeats.
    """

    norm: float
    variance: float
    snr: float
    variance_error: float
    snr_error: float


class Gradients(NamedTuple):
    """Gradients that a fit would ascend, of the objective's mean over rows: nats a row by unit of the parameter, float64.

    Attributes:
        mean: {parameter: over the repeats}.
        variance: {parameter: of one gradient}, weight by weight.
        error: {parameter: standard error of `mean`}.
        parts: {"encoder", "decoder" and whatever else of the model has parameters: `Part`}.
        num_repeats: how many noises.
    """

    mean: dict[str, Tensor]
    variance: dict[str, Tensor]
    error: dict[str, Tensor]
    parts: dict[str, Part]
    num_repeats: int


def gradients(
    vae: Any, data: Any, objective: Any = "elbo", *, particles: int = 1, num_repeats: int = 100, seed: int = 0
) -> Gradients:
    """Gradients of an objective at a model as it stands, all rows in one batch, under independent noises.

    The signal-to-noise ratio of the encoder's gradient falls as 1 / sqrt(K) for "iwae", though the bound gets tighter
    (Rainforth et al. 2018, theorem 1), and rises as sqrt(K) for "dreg" (Tucker et al. 2019).

    Args:
        vae: a model with its guide; left as it was.
        data: n rows.
        objective: as for `fit`.
        particles: K.
        num_repeats: noises, at least 20.
        seed: of them.

    Returns: `Gradients`.

    Raises: DataError, OptionError, ProgramError as `fit` does.

    Example:
        >>> import numpy as np
        >>> from ppl_vae.model.linear import PPCA
        >>> x = np.random.RandomState(0).randn(50, 4)
        >>> ppca = PPCA(2).fit(x)  # its guide is the posterior
        >>> elbo, landing = (gradients(ppca, x, name, num_repeats=20) for name in ("elbo", "sticking_the_landing"))
        >>> elbo.parts["encoder"].variance > 0.01, landing.parts["encoder"].variance < 1e-20
        (True, True)
    """
    num_repeats = whole("num_repeats", num_repeats, 2 * GROUPS)
    target, batch = chosen_objective(objective, whole("particles", particles)), batch_of(vae, data)
    args, given = batch.arguments()
    kept = [(p, p.grad) for p in vae.parameters()]
    named = {name: p for name, p in vae.named_parameters() if p.requires_grad}
    moments = _Moments(sum(p.numel() for p in named.values()))
    numbers = torch.arange(len(batch.x), device=batch.x.device)
    try:
        with isolated(vae, seed), warnings.catch_warnings(), in_mode(vae, training=True):
            warnings.filterwarnings("ignore", ".* because requires_grad=False")  # Pyro's, of parameters that are frozen
            check(vae, batch, strict=False, read_guide=False)
            target = fitting(target, objective, facts(vae, batch))
            guide = config_enumerate(vae.guide) if target.enumerates else vae.guide
            elbo: Any = target.make(particles)
            for repeat in range(num_repeats):
                vae.zero_grad(set_to_none=True)
                keys = step_keys(numbers, seed, repeat)
                with surroundings(target, elbo, numbers, keys):
                    elbo.loss_and_grads(vae.model, guide, *args, **given)
                moments.add(repeat % GROUPS, _flat(named) / -len(batch.x))
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient
    return _summary(named, moments, num_repeats)


def _flat(named: dict[str, Tensor]) -> Tensor:
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in named.values()]
    return torch.cat([gradient.flatten().double().cpu() for gradient in gradients])


class _Moments:
    """Number, mean and sum of squared deviations of vectors, by group (Welford 1962)."""

    def __init__(self, size: int) -> None:
        self.number = torch.zeros(GROUPS, 1, dtype=torch.float64)
        self.mean, self.squares = torch.zeros(2, GROUPS, size, dtype=torch.float64)

    def add(self, group: int, vector: Tensor) -> None:
        self.number[group] += 1
        apart = vector - self.mean[group]
        self.mean[group] += apart / self.number[group]
        self.squares[group] += apart * (vector - self.mean[group])

    def merged(self, groups: list[int]) -> tuple[float, Tensor, Tensor]:
        """Number, mean and variance of one vector, of some groups together."""
        number, mean = self.number[groups], self.mean[groups]
        total = float(number.sum())
        centre = (number * mean).sum(0) / total
        squares = self.squares[groups].sum(0) + (number * (mean - centre) ** 2).sum(0)
        return total, centre, squares / (total - 1)


def _summary(named: dict[str, Tensor], moments: _Moments, num_repeats: int) -> Gradients:
    everything = list(range(GROUPS))
    without = [moments.merged([g for g in everything if g != left_out]) for left_out in everything]
    number, mean, variance = moments.merged(everything)
    sizes = [p.numel() for p in named.values()]

    def split(vector: Tensor) -> dict[str, Tensor]:
        return {name: part.view(p.shape) for (name, p), part in zip(named.items(), vector.split(sizes))}

    owner = [name.partition(".")[0] for name, p in named.items() for _ in range(p.numel())]
    parts = {}
    for part in dict.fromkeys(owner):
        own = torch.tensor([name == part for name in owner])
        norm, trace, snr = _signal(number, mean[own], variance[own])
        others = torch.tensor([_signal(n, m[own], v[own])[1:] for n, m, v in without], dtype=torch.float64)
        errors = (others.var(0, correction=0) * (GROUPS - 1)).sqrt()
        parts[part] = Part(norm, trace, snr, *errors.tolist())
    return Gradients(split(mean), split(variance), split((variance / number).sqrt()), parts, num_repeats)


def _signal(number: float, mean: Tensor, variance: Tensor) -> tuple[float, float, float]:
    """Norm of the mean without what noise adds to it, trace of the covariance, and their ratio."""
    trace = float(variance.sum())
    norm = sqrt(max(float(mean.square().sum()) - trace / number, 0.0))
    return norm, trace, norm / sqrt(trace) if trace else inf if norm else nan
