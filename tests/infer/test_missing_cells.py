"""What stands under a mask never matters; missing cells are imputed from the others."""

import numpy as np
import pandas as pd
import pytest
import torch

import ppl_vae as pv
from ppl_vae.infer.noise import Keyed, step_keys
from ppl_vae.infer.objectives import objective
from ppl_vae.infer.scope import isolated

RANDOM = np.random.RandomState(0)
SIGNAL = RANDOM.randn(200)
FRAME = pd.DataFrame(
    {
        "real": SIGNAL + 0.3 * RANDOM.randn(200),
        "positive": np.exp(0.5 * SIGNAL + 0.2 * RANDOM.randn(200)),
        "count": RANDOM.poisson(np.exp(0.5 * SIGNAL)).astype(float),
        "category": np.array(["u", "v", "w"])[np.digitize(SIGNAL, [-0.5, 0.5])],
    }
).mask(pd.DataFrame(RANDOM.rand(200, 4) < 0.2, columns=["real", "positive", "count", "category"]))


@pytest.mark.parametrize("name", ["elbo", "analytic_kl", "iwae"])
def test_hidden_values_change_no_bit_of_loss_or_gradient(name):
    vae = pv.build(FRAME, likelihood="infer", latent=2, hidden=(8,))
    batch = vae.batch(FRAME)
    seen = []
    for hidden in (0.0, float("nan"), 1e30):
        vae.zero_grad(set_to_none=True)
        x = torch.where(batch.mask, batch.x, hidden)
        with isolated(vae), Keyed(step_keys(torch.arange(len(x)), 0, 0)):
            loss = objective(name).make(2).loss_and_grads(vae.model, vae.guide, x, batch.mask)
        seen.append([torch.tensor(loss), *(p.grad for p in vae.parameters())])
    assert all(torch.isfinite(value).all() for value in seen[0])
    assert all(torch.equal(a, b) for other in seen[1:] for a, b in zip(seen[0], other))


def test_imputation_follows_the_other_columns_and_keeps_observed_cells():
    vae = pv.build(FRAME, likelihood="infer", latent=2, hidden=(32,))
    pv.fit(vae, FRAME, epochs=60, lr=1e-2, progress=False)
    imputed = pv.impute(vae, FRAME, num_draws=5, candidates=200)
    observed = FRAME.notna()
    for frame in (imputed.frame, imputed.completed(3)):
        assert frame.notna().all().all()
        assert all((frame[c][observed[c]] == FRAME[c][observed[c]]).all() for c in FRAME)
    hidden = ~observed["real"]
    assert np.corrcoef(imputed.frame["real"][hidden], SIGNAL[hidden])[0, 1] > 0.6  # 1 / sqrt(40) of chance: 0.16
    assert imputed.draws.posterior["real"].shape == (1, 5, hidden.sum())


def test_a_model_without_nullable_columns_cannot_impute():
    x = RANDOM.randn(20, 3)
    with pytest.raises(pv.OptionError, match="without nullable columns"):
        pv.impute(pv.build(x, latent=2), x)
