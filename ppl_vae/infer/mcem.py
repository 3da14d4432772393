"""Monte Carlo EM: no encoder, but a chain of HMC for every row of the data, which goes on from epoch to epoch."""

from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppl_vae.infer.elbo import TensorELBO, local, shared, total
from ppl_vae.infer.hmc import State, evaluate, transition
from ppl_vae.infer.joint import coordinates, holding
from ppl_vae.infer.noise import mix

CHAIN, ACCEPT = 0xC4A1, 0.9
"""Sets the chains' noise apart from that of draws; the acceptance that each row's step size is tuned to, as in the paper."""


class MonteCarloEM(TensorELBO):
    """log p(x, z) at draws of p(z|x) by HMC, for the model alone (Kingma & Welling 2013, appendix E; Wei & Tanner 1990).

    A row's chains start at draws from the prior, and move once before every `updates` steps that meet the row.

    Args:
        particles: chains a row.
        leapfrogs: steps of a trajectory.
        updates: steps of the weights for each acquired draw.
    """

    def __init__(self, particles: int, leapfrogs: int, updates: int) -> None:
        super().__init__(particles)
        self.leapfrogs, self.updates = leapfrogs, updates
        self.numbers = torch.zeros(0, dtype=torch.long)
        self.u = torch.zeros(particles, 0, 0)
        self.log_step, self.visits = torch.zeros(0), torch.zeros(0, dtype=torch.long)

    @property
    def evaluations(self) -> float:
        """Gradients taken a row and step: of the weights, and those of the chains that are due."""
        return self.num_particles * (1 + (self.leapfrogs + 1) / self.updates)

    def state(self) -> dict[str, Tensor]:
        """The chains."""
        return {name: getattr(self, name) for name in ("u", "log_step", "visits")}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on with these chains."""
        self.u, self.log_step, self.visits = state["u"], state["log_step"], state["visits"]

    def at(self, numbers: Tensor, keys: Tensor) -> None:
        super().at(numbers, keys)
        self.numbers = numbers

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        z = self._drawn(model, args, kwargs)
        trace = self._run(model, {"z": z}, args, kwargs)
        return -total(local(trace), self.num_particles).mean(0).sum() - shared(trace) / self.num_particles

    def _run(self, model: Any, values: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
        plated = pyro.plate("num_particles_vectorized", self.num_particles, dim=-2)(model)
        trace = poutine.trace(poutine.replay(plated, trace=holding(values))).get_trace(*args, **kwargs)
        trace.compute_log_prob()
        return trace

    @torch.no_grad()
    def _drawn(self, model: Any, args: Any, kwargs: Any) -> Tensor:
        """z (K, b, k) of the batch's rows, their chains moved on where it is time."""
        assert self.keys is not None, "only a fit says which rows these are"
        rows = self.numbers
        with poutine.block():  # what watches the fit sees the weights' steps alone
            with self.noise(CHAIN):
                prior = self._run(model, {}, args, kwargs)  # of all, for their shape: new rows start there
            to_z = coordinates(prior.nodes["z"]["fn"].support)
            start = to_z.inv(prior.nodes["z"]["value"])
            self._grow(int(rows.max()) + 1, start)
            new = self.visits[rows] == 0
            self.u[:, rows] = torch.where(new[:, None], start, self.u[:, rows])

            def terms(u: Tensor) -> tuple[Tensor, Tensor]:
                z = to_z(u)
                sites = local(self._run(model, {"z": z}, args, kwargs))
                jacobian = to_z.log_abs_det_jacobian(u, z).reshape(*u.shape[:2], -1).sum(-1)
                log_lik = sites.pop("x")["log_prob"]
                return total(sites, self.num_particles) + jacobian, log_lik

            if bool((self.visits[rows] % self.updates == 0).any()):
                state: State = evaluate(terms, self.u[:, rows])
                step, scale = self.log_step[rows].exp(), torch.ones_like(state.u[0])
                moved = transition(terms, state, step, scale, self.leapfrogs, mix(self.keys + CHAIN))
                due = self.visits[rows] % self.updates == 0
                self.u[:, rows] = torch.where(due[:, None], moved.state.u, state.u)
                self.log_step[rows] += torch.where(due, 0.1 * (moved.accept.mean(0) - ACCEPT), 0.0)
            self.visits[rows] += 1
            return to_z(self.u[:, rows])

    def _grow(self, rows: int, start: Tensor) -> None:
        """Room for the chains of so many rows."""
        more, k = rows - self.u.shape[1], start.shape[-1]
        if more <= 0:
            return
        kept = self.u.view(self.num_particles, -1, k).to(start)
        self.u = torch.cat([kept, start.new_zeros(self.num_particles, more, k)], 1)
        self.log_step = torch.cat([self.log_step.to(start), start.new_full((more,), -2.0)])
        self.visits = torch.cat([self.visits.to(start.device), start.new_zeros(more, dtype=torch.long)])
