"""What stands under a mask never matters; missing cells are imputed from the others."""

import numpy as np
import pandas as pd
import pytest
import torch

import ppl_vae as pv
from ppl_vae.criticism.scores import SCORES
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


def hiding(vae, monkeypatch, data, value):
    """Let `vae` see `value` wherever a cell of the data is missing, as a caller's own tensors may have it."""
    batch = vae.batch(data)
    x = torch.where(batch.mask, batch.x, value)
    monkeypatch.setattr(vae, "batch", lambda data, minimum_rows=1: batch._replace(x=x))


HIDDEN = (0.0, float("nan"), 1e30, -float("inf"))
NUMBERS = FRAME[["real", "positive", "count"]]


@pytest.mark.parametrize("posterior", ["mean_field", "iaf"])
@pytest.mark.parametrize("scoring", SCORES)
def test_hidden_values_change_no_bit_of_a_score(scoring, posterior, monkeypatch):
    data = NUMBERS if scoring == "reconstruction_error" else FRAME
    vae = pv.build(data, likelihood="infer", latent=2, hidden=(8,), posterior=posterior)
    per_feature = not SCORES[scoring].weighs
    seen = []
    for value in HIDDEN:
        with monkeypatch.context() as patch:
            hiding(vae, patch, data, value)
            seen.append(pv.score(vae, data, scoring, num_draws=8, per_feature=per_feature))
    assert np.isfinite(seen[0].values).all() and seen[0].values.std() > 0
    for other in seen[1:]:
        assert np.array_equal(seen[0].values, other.values) and np.array_equal(seen[0].mcse, other.mcse)
        if per_feature:
            assert np.array_equal(seen[0].per_feature, other.per_feature)
    if per_feature:
        assert np.all(seen[0].per_feature[data.isna()] == 0)


@pytest.mark.parametrize("likelihood", ["normal", "low_rank_normal", "full_normal", "student_t"])
def test_hidden_values_change_no_bit_of_draws_codes_reconstructions_or_joint_likelihoods(likelihood, monkeypatch):
    data = pd.DataFrame(RANDOM.randn(30, 3), columns=list("abc")).mask(RANDOM.rand(30, 3) < 0.3)
    vae = pv.build(data, likelihood=likelihood, latent=2, hidden=(8,), nullable=True)
    seen = []
    for value in HIDDEN:
        with monkeypatch.context() as patch:
            hiding(vae, patch, data, value)
            drawn = pv.draws(vae, data, num_draws=3)
            arrays = [drawn.z, drawn.log_lik, drawn.log_weight]
            seen.append([*map(np.asarray, arrays), pv.encode(vae, data), pv.reconstruct(vae, data).to_numpy()])
    assert all(np.isfinite(part).all() for part in seen[0])
    assert all(np.array_equal(a, b) for other in seen[1:] for a, b in zip(seen[0], other))


def test_a_missing_cell_of_a_frame_is_missing_however_it_is_written():
    vae = pv.build(FRAME, likelihood="infer", latent=2, hidden=(8,))
    same = FRAME.assign(
        real=FRAME.real.astype("Float64"), category=FRAME.category.astype(object).where(FRAME.category.notna(), None)
    )
    assert (
        same.real.isna().sum() == FRAME.real.isna().sum() > 0 and same.category[FRAME.category.isna()].iloc[0] is None
    )
    assert np.array_equal(pv.score(vae, FRAME).values, pv.score(vae, same).values)


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
