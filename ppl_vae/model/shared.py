"""The guide of sites outside the plate of rows: hyperparameters and group effects."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import biject_to

from ppl_vae.model.families import softplus_scale

START = 0.1
"""Standard deviation at which every site starts, in unconstrained coordinates."""


class MeanFieldShared(nn.Module):
    """q(w): an independent normal for each number of every site of a program, pushed into the site's support.

    Args:
        program: a Pyro program without arguments, such as a prior's `global_sites`; its observed sites are left out.
    """

    def __init__(self, program: Callable[[], Any]) -> None:
        super().__init__()
        self.program = (program,)  # a tuple: the parameters of the prior are not the guide's
        with torch.random.fork_rng(devices=[]), pyro.get_param_store().scope():
            nodes: dict[str, Any] = dict(poutine.trace(program).get_trace().nodes)
        self.loc, self.raw = nn.ParameterDict(), nn.ParameterDict()
        for name in latent_sites(nodes):
            start = biject_to(nodes[name]["fn"].support).inv(nodes[name]["value"])
            self.loc[name] = nn.Parameter(torch.zeros_like(start))
            self.raw[name] = nn.Parameter(torch.full_like(start, START).expm1().log())

    def forward(self) -> dict[str, Tensor]:
        """Sample every site, under the plates that the program has it in."""
        with pyro.poutine.block(), torch.random.fork_rng(devices=[]), torch.no_grad():
            nodes = poutine.trace(self.program[0]).get_trace().nodes
        values = {}
        for name in latent_sites(nodes):
            fn: Any = nodes[name]["fn"]
            normal = dist.Normal(self.loc[name], softplus_scale(self.raw[name])).to_event(len(fn.event_shape))
            with ExitStack() as plates:
                for frame in nodes[name]["cond_indep_stack"]:
                    plates.enter_context(pyro.plate(frame.name, frame.size, dim=frame.dim))
                values[name] = pyro.sample(name, dist.TransformedDistribution(normal, biject_to(fn.support)))
        return values

    def __repr__(self) -> str:
        return f"MeanFieldShared({', '.join(self.loc)})"


def latent_sites(nodes: dict[str, Any]) -> list[str]:
    """The names of the unobserved sample sites of a trace."""
    return [
        name
        for name, site in nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not poutine.util.site_is_subsample(site)
    ]
