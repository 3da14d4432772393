"""Uncertain weights: those of the decoder's net as sites that all rows share (Kingma & Welling 2013, appendix F)."""

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ppl_vae.errors import ProgramError, number
from ppl_vae.model.families import softplus_scale

START = 0.03
"""Standard deviation at which the posterior of every weight starts."""


class ManyNormals(dist.Independent):
    """Independent normals, all of whose numbers are one event; apart from others so that its draws can be made in bulk."""


def normals(loc: Tensor, scale: Tensor) -> ManyNormals:
    """N(loc, scale^2) for each number of a tensor of weights; its shape is the event's."""
    return ManyNormals(dist.Normal(loc, scale), max(loc.dim(), scale.dim()))


class WeightPrior(nn.Module):
    """p(w) = N(0, scale^2), independently for the weights and biases of a net, or for some of them.

    Args:
        net: it stays the decoder's; its own weights are not read where others stand in their place.
        scale: standard deviation, in the net's own units.
        names: of the parameters that are random; None: all.
    """

    scale: Tensor

    def __init__(self, net: nn.Module, scale: float = 1.0, names: Sequence[str] | None = None) -> None:
        super().__init__()
        self._net = (net,)  # in a tuple, so that its parameters are registered once
        self.names = tuple(name for name, _ in net.named_parameters()) if names is None else tuple(names)
        self.register_buffer("scale", torch.tensor(number("weight_scale", scale)))

    def sample(self) -> dict[str, Tensor]:
        """Sample every weight, {name: shape}; under a plate of S draws (S, 1, *shape)."""
        shapes, zero = _shapes(self._net[0]), torch.zeros_like(self.scale)
        return {
            name: pyro.sample(site(name), normals(zero.expand(shapes[name]), self.scale.expand(shapes[name])))
            for name in self.names
        }

    def forward(self, value: Tensor, weights: dict[str, Tensor] | None) -> Tensor:
        """The net at these weights.

        Args:
            value: (..., n, inputs).
            weights: what `sample` returned.

        Raises: ProgramError without weights.
        """
        if weights is None:
            raise ProgramError("decoder: got no weights, expected those of its global_sites() as `shared`")
        return at_weights(self._net[0], weights, value)

    def __repr__(self) -> str:
        return f"WeightPrior({', '.join(self.names)})"


class MeanFieldWeights(nn.Module):
    """q(w): an independent normal for each weight of a net, whose means are the net's own parameters.

    Args:
        net: the decoder's, freshly made or fitted with `weights="point"`.
        start: standard deviations at the start.
    """

    def __init__(self, net: nn.Module, start: float = START) -> None:
        super().__init__()
        self._net = (net,)
        raw = {key(name): torch.full_like(p, start).expm1().log() for name, p in net.named_parameters()}
        self.raw = nn.ParameterDict({name: nn.Parameter(value.detach()) for name, value in raw.items()})

    def forward(self) -> None:
        """Sample every weight."""
        for name, loc in self._net[0].named_parameters():
            pyro.sample(site(name), normals(loc, softplus_scale(self.raw[key(name)])))

    def __repr__(self) -> str:
        return f"MeanFieldWeights({', '.join(self.raw)})"


def site(name: str) -> str:
    """The site of a parameter of the decoder's net: its name in `vae.named_parameters()`."""
    return f"decoder.net.{name}"


def key(name: str) -> str:
    """A parameter's name as torch allows it in a dictionary of parameters."""
    return name.replace(".", "_")


def _shapes(net: nn.Module) -> dict[str, torch.Size]:
    """Of its parameters; plain tensors may stand in their place, where get_parameter would refuse them."""
    return {name: p.shape for name, p in net.named_parameters()}


def at_weights(net: nn.Module, weights: dict[str, Tensor], value: Tensor) -> Tensor:
    """net(value) with other weights in the place of its own, which may differ between draws; no loop over these.

    Args:
        weights: {name: (..., 1, *shape)}, its last batch dimension that of the rows, which share them; or {name: shape}.
        value: (..., n, inputs), leading dimensions broadcast with those of the weights.
    """
    shapes = _shapes(net)
    batch = torch.broadcast_shapes(*(w.shape[: w.dim() - len(shapes[n])] for n, w in weights.items()))
    lead = batch[:-1]
    weights = {n: w.expand(batch + shapes[n]).reshape(lead + shapes[n]) for n, w in weights.items()}
    value = value.expand(torch.broadcast_shapes(lead, value.shape[:-2]) + value.shape[-2:]) if lead else value

    def run(weights: dict[str, Tensor], value: Tensor) -> Tensor:
        return functional_call(net, weights, (value,))

    for place, size in zip(range(len(lead) - 1, -1, -1), reversed(lead)):  # from the inside
        if size == 1:  # one matrix for all draws is faster than a batch of equal ones
            weights = {n: w.squeeze(place) for n, w in weights.items()}
        else:
            dim = place - len(lead) - 2
            run = vmap(run, in_dims=(0, dim), out_dims=dim)
    return run(weights, value)


def point(net: nn.Module) -> tuple[None, None]:
    """Weights that are parameters."""
    return None, None


def normal(net: nn.Module, *, weight_scale: float = 1.0) -> tuple[WeightPrior, MeanFieldWeights]:
    """N(0, weight_scale^2), and a mean-field normal posterior (Kingma & Welling 2013, appendix F)."""
    return WeightPrior(net, weight_scale), MeanFieldWeights(net)


WEIGHTS: dict[str, Callable[..., tuple[Any, Any]]] = {"point": point, "normal": normal}
"""By name: a decoder's net to the prior of its weights and their posterior."""
