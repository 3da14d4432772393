"""Monte Carlo EM: what it must reach is known in closed form."""

import numpy as np
import pyro
import pytest
import torch

import ppl_vae as pv
from ppl_vae.infer.mcem import MonteCarloEM
from ppl_vae.infer.noise import step_keys


@pytest.fixture
def rows():
    r = np.random.RandomState(0)
    return r.randn(80, 1) @ r.randn(1, 4) + 0.5 * r.randn(80, 4)


def model(x):
    return pv.build(x, latent=1, hidden=(), scale="shared", standardize="center")


def test_maximum_likelihood(rows):
    """A linear model's evidence rises to that of probabilistic PCA; the encoder stays as it was."""
    vae = model(rows)
    before = [p.clone() for p in vae.encoder.parameters()]
    options = {"particles": 8, "epochs": 250, "batch_size": 80, "lr": 5e-2, "valid": 0.0, "progress": False}
    history = pv.fit(vae, rows, objective=("mcem", {"updates": 1, "leapfrogs": 5}), **options)
    log_p = pv.log_evidence(vae, rows, "ais", 32, steps=30).log_p.mean()
    assert log_p == pytest.approx(pv.PPCA(1).fit(rows).log_prob(rows).mean(), abs=0.01)
    assert all(torch.equal(p, q) for p, q in zip(before, vae.encoder.parameters()))
    assert repr(history) == f"History(250 epochs, objective {history['objective'][-1]:.4f} nats a row)"
    assert np.isnan(history["bound"]).all() and np.isfinite(history["objective"]).all()


def test_the_guide_is_not_believed(rows, tmp_path):
    """What no fit has trained answers nothing, after loading too; what does without it does."""
    vae = model(rows)
    assert pv.score(vae, rows).values.shape == (80,)  # before any fit it is as good as the model
    pv.fit(vae, rows, objective="mcem", epochs=1, progress=False)
    pv.save(vae, tmp_path)
    for one in (vae, pv.load(tmp_path)):
        for ask in (pv.score, pv.encode, pv.reconstruct, pv.log_evidence, pv.draws, pv.to_arviz):
            with pytest.raises(pv.ProgramError, match="guide: got one that the last fit has not trained"):
                ask(one, rows)
        with pytest.raises(pv.ProgramError, match="the last fit has not trained"):
            pv.sbc(one, 20)
        assert np.isfinite(pv.pit(one, rows).values).all()  # z from the prior asks no guide
        assert pv.posterior_predictive(one, rows, 20, new=True).shape == (8, 5)
        with pytest.raises(pv.ProgramError, match=r"ppl_vae\.criticism\.refit\.refitted"):
            pv.posterior_predictive(one, rows, 20)
        assert np.isfinite(pv.log_evidence(one, rows[:3], "ais", 4, steps=5).log_p).all()
        drawn = pv.posterior(one, rows[:3], "hmc", 4, warmup=5)
        assert pv.to_arviz(one, rows[:3], draws=drawn).posterior.z.shape == (1, 4, 3, 1)
        assert pv.generate(one, 3).x.shape == (3, 4)
    pv.fit(vae, rows, epochs=1, progress=False)
    assert pv.score(vae, rows).values.shape == (80,)
    pv.fit(vae, rows, objective="mcem", epochs=1, progress=False)
    with pytest.raises(pv.ProgramError, match="the last fit has not trained"):  # of a model that is gone
        pv.score(vae, rows)


def test_chains_go_on(rows):
    """A row's chains move once before every `updates` steps that meet it, by its own number, and reach p(z|x)."""
    exact = pv.PPCA(1).fit(rows)
    x = exact.batch(rows).x
    elbo = MonteCarloEM(200, leapfrogs=3, updates=3)
    numbers = torch.arange(10, 30)
    places = []
    with torch.no_grad(), pyro.get_param_store().scope():
        for step in range(60):
            order = torch.randperm(20)
            elbo.at(numbers[order], step_keys(numbers[order], 0, step))
            elbo.differentiable_loss(exact.model, exact.guide, x[numbers[order]])
            places.append(elbo.u[:, 10:30].clone())
    moved = [bool((a != b).any()) for a, b in zip(places, places[1:])]
    assert moved == [step % 3 == 2 for step in range(59)]
    assert elbo.evaluations == 200 * (1 + 4 / 3)  # three leapfrogs and the start, every third step
    assert elbo.visits[:10].sum() == 0 and (elbo.visits[10:30] == 60).all()
    q = exact.posterior(rows[10:30])
    z = torch.cat(places[30::3])  # ten draws of each; chains are independent of each other, a chain's draws nearly so
    error = q.stddev / 200**0.5
    assert ((z.mean(0) - q.mean).abs() < 4 * error).all()
    assert ((z.std(0) / q.stddev - 1).abs() < 4 / (2 * 200) ** 0.5).all()


def test_what_it_cannot_do():
    x = np.random.RandomState(0).randn(20, 3)
    codes = pv.build(x, latent=2, hidden=(), prior="bernoulli", posterior="bernoulli")
    with pytest.raises(pv.PplVaeError, match="mcem"):
        pv.fit(codes, x, objective="mcem", epochs=1, progress=False)
    bits = pv.build(x > 0, latent=2, hidden=(), likelihood="bernoulli")
    with pytest.raises(
        pv.OptionError, match="binarize: got 'stochastic' with 'mcem', which keeps a chain for each row"
    ):
        pv.fit(bits, x > 0, objective="mcem", binarize="stochastic", epochs=1, progress=False)
