"""One fused optimiser over all parameters, in the place of Pyro's one per tensor (a third of a small step)."""

from collections.abc import Callable
from math import cos, isfinite, pi
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor

from ppl_vae.errors import choose

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
}


def cosine(progress: float) -> float:
    """From 1 to 0 along half a cosine (Loshchilov & Hutter 2017, without restarts)."""
    return 0.5 * (1 + cos(pi * min(progress, 1.0)))


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": cosine, "constant": constant}


class OneOptimizer(PyroOptim):
    """Steps every parameter at once, on the gradient of the mean over rows.

    `SVI` hands over the parameters that it met; they are taken in the parameter store's order, so that a run repeats.
    It refuses to step on a loss or gradient that is not finite: `refused` is then True, `not_finite` lists the parameters
    with such gradients, and none has moved.

    Args:
        name: in `OPTIMIZERS`.
        lr, weight_decay: torch's.
        max_grad_norm: clip to this norm, or None.

    Attributes:
        known: torch's state of parameters that have been stepped before, to go on from.
        rows: that gradients are sums over.
        sum: over processes, of gradients and loss; None: they are whole.
    """

    def __init__(self, name: str, lr: float, weight_decay: float, max_grad_norm: float | None) -> None:
        make = choose("optimizer", name, OPTIMIZERS)
        super().__init__(make, {"lr": lr, "weight_decay": weight_decay})
        self.name, self.make, self.lr, self.weight_decay, self.max_grad_norm = (
            name,
            make,
            lr,
            weight_decay,
            max_grad_norm,
        )
        self.torch: torch.optim.Optimizer | None = None
        self.known: dict[Tensor, dict[str, Tensor]] = {}
        self.factor = 1.0
        self.not_finite: list[Tensor] = []
        self.rows, self.loss, self.refused, self.grad_norm = 1, 0.0, False, torch.zeros(())
        self.sum: Callable[[list[Tensor]], list[Tensor]] | None = None

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        optimizer = self._optimizer(params)
        parameters = [p for p in self.parameters if p.grad is not None]
        gradients: list[Tensor] = [p.grad for p in parameters]  # type: ignore[misc]
        loss = self.loss
        if self.sum is not None:
            *sums, total = self.sum([*gradients, torch.tensor([loss]).to(gradients[0])])
            torch._foreach_copy_(gradients, sums)
            loss = float(total)
        if self.rows != 1:
            torch._foreach_mul_(gradients, 1.0 / self.rows)
        self.grad_norm = torch.nn.utils.get_total_norm(gradients)
        self.refused = not (isfinite(loss) and bool(torch.isfinite(self.grad_norm)))
        if self.refused:
            self.not_finite = [p for p, g in zip(parameters, gradients) if not torch.isfinite(g).all()]
            return
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, self.grad_norm)
        optimizer.step()
        optimizer.zero_grad()  # to None: SVI would fill new tensors with zeros

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters, once the first step has been taken."""
        return [] if self.torch is None else self.torch.param_groups[0]["params"]

    @property
    def state(self) -> dict[Any, Any]:
        """What is kept of each parameter that has been stepped."""
        return self.known if self.torch is None else self.torch.state

    def scale_lr(self, factor: float) -> None:
        """Set the step size to `factor` times the first one."""
        self.factor = factor
        if self.torch is not None:
            for group in self.torch.param_groups:
                group["lr"] = self.lr * factor

    def _optimizer(self, params: Any) -> torch.optim.Optimizer:
        if self.torch is None:
            named = pyro.get_param_store().named_parameters()
            ordered = list({id(p): p for _, p in named if p in params}.values())  # a shared one has several names
            self.torch = self.make(ordered, lr=self.lr, weight_decay=self.weight_decay, fused=True)
            self.torch.state.update({p: self.known[p] for p in ordered if p in self.known})
            self.scale_lr(self.factor)
        return self.torch
