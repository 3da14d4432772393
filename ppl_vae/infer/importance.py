"""The importance-weighted bound, per row: what Pyro's `RenyiELBO` computes only where every site is in the rows' plate."""

import math
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from torch import Tensor


class ImportanceWeighted(ELBO):
    """E[sum_i log (1/K) sum_k w_ik], w_ik = p(x_i, z_ik) / q(z_ik|x_i) (Burda et al. 2016, eq. 8), pathwise gradients.

    Observed sites that all rows share, such as a prior of weights, are added once, outside the logarithm.
    """

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the bound, summed over rows."""
        log_weights, shared = [], torch.zeros(())
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            log_weight = torch.zeros(())
            for sign, trace in ((1, model_trace), (-1, guide_trace)):
                for site in trace.nodes.values():
                    if site["type"] != "sample":
                        continue
                    if any(frame.name == "data" for frame in site["cond_indep_stack"]):
                        log_weight = log_weight + sign * site["log_prob"]
                    else:
                        shared = shared + sign * site["log_prob_sum"] / self.num_particles
            log_weights.append(log_weight.view(-1, log_weight.shape[-1]))
        log_weight = torch.cat(log_weights)
        return -(log_weight.logsumexp(0) - math.log(len(log_weight))).sum() - shared

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
