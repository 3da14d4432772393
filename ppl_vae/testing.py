"""The contract of parts, as checks that raise: for priors, likelihoods and posteriors of one's own. Used on all of ours."""

from typing import Any

import torch
from torch import Tensor

from ppl_vae.infer.draws import draws
from ppl_vae.infer.objectives import BOUNDS
from ppl_vae.infer.objectives import objective as chosen_objective
from ppl_vae.infer.training import fit

Report = dict[str, str]
"""What was checked, and what was found."""

STEPS = (12, 60, 240)
"""Steps of each attempt of `check_fit`."""
DRAWS = 120
"""Draws a row by which `check_fit` measures a bound."""
ERRORS = 3.0
"""Standard errors by which the bound has to rise: a model that learns nothing passes at 1.3e-3 an attempt."""


def check_fit(
    vae: Any, data: Any, objective: Any = "elbo", *, particles: int = 1, lr: float = 2e-2, seed: int = 0
) -> Report:
    """Check that a model trains: its bound rises, every parameter moves, nothing turns NaN or infinite.

    A few steps on all rows at once. The bound of these rows is measured before and after with the same noise, which
    cancels most of its error; what is left is judged by its standard error over draws. Where the bound did not rise or a
    parameter stayed, the fit is tried again from the start with more steps.

    Args:
        vae: a model with its guide; left as it was.
        data: some tens of rows.
        objective, particles, lr, seed: as for `fit`.

    Returns: the gain in nats a row, its standard error, and the steps that were needed.

    Raises: AssertionError that says what failed; what `fit` raises.
    """
    target = chosen_objective(objective, particles)
    start = {name: value.clone() for name, value in vae.state_dict().items()}

    def bounds() -> Tensor:
        groups = draws(vae, data, DRAWS // particles * particles, seed).log_weight.unflatten(0, (-1, particles))
        return BOUNDS[target.bound](groups.transpose(0, 1)).mean(1)

    faults: list[str] = []
    before = bounds()
    try:
        for steps in STEPS:
            vae.load_state_dict(start)
            options: dict[str, Any] = {
                "epochs": steps,
                "batch_size": len(data),
                "valid": 0.0,
                "schedule": "constant",
                "progress": False,
            }
            history = fit(vae, data, objective=objective, particles=particles, lr=lr, seed=seed, **options)
            gain = bounds() - before
            error = float(gain.std() / len(gain) ** 0.5)
            moved = {name: not torch.equal(p, start[name]) for name, p in vae.named_parameters()}
            finite = [*history["bound"], *history["grad_norm"], *gain.tolist()]
            assert all(map(torch.isfinite, map(torch.as_tensor, finite))), "training: got a bound that is not finite"
            faults = [f"the parameter {name!r} did not move" for name, did in moved.items() if not did]
            if not gain.mean() > ERRORS * error:
                faults.append(f"the bound rose by {gain.mean():.3g}, with standard error {error:.2g}")
            if not faults:
                return {"gain": f"{gain.mean():.3g}", "error": f"{error:.2g}", "steps": f"{steps}"}
    finally:
        vae.load_state_dict(start)
    raise AssertionError(f"training: after {STEPS[-1]} steps {'; '.join(faults)}")
