"""Optimisers as functions of tensors, for graphs: torch's own, with its defaults."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

State = list[Tensor]


class Sizes(NamedTuple):
    """Of one step, () each: made outside the graph, where powers cost nothing.

    Attributes:
        lr: the step size.
        mean, root: what Adam's averages of gradients and of their squares fall short of after so many steps, 1 - 0.9**t and
            (1 - 0.999**t)**0.5.
    """

    lr: Tensor
    mean: Tensor
    root: Tensor


Update = Callable[[Tensor, Tensor, State, Sizes, float], tuple[Tensor, State]]
"""Parameter, gradient, its state, sizes and weight decay to the next parameter and state."""


def adam(p: Tensor, g: Tensor, state: State, sizes: Sizes, decay: float) -> tuple[Tensor, State]:
    """Kingma & Ba (2015)."""
    g = g + decay * p if decay else g
    mean, square = state[0] + 0.1 * (g - state[0]), state[1] * 0.999 + g * g * 0.001
    return p - sizes.lr / sizes.mean * mean / (square.sqrt() / sizes.root + 1e-8), [mean, square]


def adamw(p: Tensor, g: Tensor, state: State, sizes: Sizes, decay: float) -> tuple[Tensor, State]:
    """Loshchilov & Hutter (2019)."""
    return adam(p * (1 - sizes.lr * decay), g, state, sizes, 0.0)


def sgd(p: Tensor, g: Tensor, state: State, sizes: Sizes, decay: float) -> tuple[Tensor, State]:
    return p - sizes.lr * (g + decay * p if decay else g), []


def adagrad(p: Tensor, g: Tensor, state: State, sizes: Sizes, decay: float) -> tuple[Tensor, State]:
    """Duchi, Hazan & Singer (2011)."""
    g = g + decay * p if decay else g
    total = state[0] + g * g
    return p - sizes.lr * g / (total.sqrt() + 1e-10), [total]


UPDATES: dict[str, tuple[Update, tuple[str, ...]]] = {
    "adam": (adam, ("exp_avg", "exp_avg_sq")),
    "adamw": (adamw, ("exp_avg", "exp_avg_sq")),
    "sgd": (sgd, ()),
    "adagrad": (adagrad, ("sum",)),
}
"""Each with torch's names of what it keeps of a parameter."""
