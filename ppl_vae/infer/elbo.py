"""What our own ELBO objects share: a loss made of tensors alone, log weights by row, noise by key."""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ppl_vae.infer.draws import is_local
from ppl_vae.infer.noise import Keyed, mix

Place = Callable[[Tensor], Tensor]


def attached(z: Tensor) -> Tensor:
    """Densities at the draws themselves: gradients go through them."""
    return z


def detached(z: Tensor) -> Tensor:
    """Densities at the draws as numbers: no gradient goes through them."""
    return z.detach()


def leaf(z: Tensor) -> Tensor:
    """Densities at the draws as inputs of their own, so that d log w / dz can be told from d log w / d parameters."""
    return z.detach().requires_grad_(torch.is_grad_enabled())


class Weights:
    """Log densities of K draws of z for each of n rows, (K, n) each, and the sites that they came from.

    Attributes:
        log_p: log p(x, z).
        log_q: log q(z|x).
        score: log q(z|x) without a weight of the KL term, whose gradient is the score function.
        shared: log p - log q of the sites that all rows share, (); mean over draws.
        model, guide: the sample sites of the rows by name; "value" is where the densities were computed, "drawn" the draw.
    """

    def __init__(self, model: Any, guide: Any, num_draws: int) -> None:
        self.model, self.guide = local(model), local(guide)
        self.log_p, self.log_q = total(self.model, num_draws), total(self.guide, num_draws)
        for site in self.guide.values():  # of rows that count
            site["score"] = scale_and_mask(site["unscaled_log_prob"], mask=site["mask"])
        self.score = total(self.guide, num_draws, "score")
        self.shared = (shared(model) - shared(guide)) / num_draws

    @cached_property
    def log_weight(self) -> Tensor:
        """log p(x, z) - log q(z|x), (K, n)."""
        return self.log_p - self.log_q


class TensorELBO(ELBO):
    """An ELBO whose loss is made of tensor operations alone, so that `torch.fx` can trace it.

    Args:
        particles: K draws of z a row, at once.
        place: where densities are computed: at the draws `attached`, `detached` or as a `leaf`.

    Attributes:
        traceable: whether a step of it depends on nothing but the programs, its rows and their keys, row by row.
    """

    traceable = False

    def __init__(self, particles: int, place: Place = attached) -> None:
        super().__init__(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
        self.place = place
        self.keys: Tensor | None = None

    def at(self, numbers: Tensor, keys: Tensor) -> None:
        """Called before each step of a fit, for objectives with further noise, or a state for each row.

        Args:
            numbers: (b,) of the batch's rows in the data.
            keys: (b,) of their noise in this step.
        """
        self.keys = keys

    def noise(self, salt: int) -> AbstractContextManager:
        """Keyed noise of its own for each `salt`; torch's generator where no keys were given."""
        return nullcontext() if self.keys is None else Keyed(mix(self.keys + salt), strict=False)

    def weights(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Weights:
        """Run both programs."""
        model_trace, guide_trace = self._get_vectorized_trace(model, guide, args, kwargs)
        return Weights(model_trace, guide_trace, self.num_particles)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        for site in local(guide_trace).values():
            site["drawn"], site["value"] = site["value"], self.place(site["value"])
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        traces = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
        for trace in traces:
            trace.compute_log_prob()
        return traces

    @abstractmethod
    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the objective, summed over rows; its gradient is the estimator's."""

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss, without gradients."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss; its gradients are added to those of the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())


def steered(value: Tensor, surrogate: Tensor) -> Tensor:
    """A tensor that equals `value`, with the gradient of `surrogate`."""
    return value.detach() + (surrogate - surrogate.detach())


def local(trace: Any) -> dict[str, Any]:
    """The sample sites of the rows, by name."""
    return {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and is_local(s)}


def total(sites: dict[str, Any], num_draws: int, what: str = "log_prob") -> Tensor:
    """Log densities summed over sites, (K, n)."""
    return sum((s[what] for s in sites.values()), start=torch.zeros(())).reshape(num_draws, -1)


def shared(trace: Any) -> Tensor:
    """The log density of the sites that all rows share, (); with a plate of draws, of all of them."""
    sites = (s for s in trace.nodes.values() if s["type"] == "sample" and not is_local(s))
    return sum((s["log_prob_sum"] for s in sites), start=torch.zeros(()))


def state_of(elbo: Any) -> dict[str, Tensor]:
    """What an objective keeps from step to step, beside what is in Pyro's parameter store."""
    return elbo.state() if hasattr(elbo, "state") else {}


def restore(elbo: Any, state: dict[str, Tensor]) -> None:
    """Give that back to a fresh one."""
    if state:
        elbo.restore(state)
