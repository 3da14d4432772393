import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import ppl_vae as pv
from ppl_vae.infer.draws import Draws, batch_of
from ppl_vae.infer.scope import in_mode

RANDOM = np.random.RandomState(0)
X = (RANDOM.randn(500, 2) @ RANDOM.randn(2, 6) + 0.5 * RANDOM.randn(500, 6)).astype("float32")


@pytest.fixture(scope="module")
def vae():
    vae = pv.build(X, latent=2, hidden=(16,))
    pv.fit(vae, X, epochs=5, lr=1e-2, progress=False)
    return vae


def test_every_log_weight_of_an_exact_guide_is_log_p():
    """For every row and draw, to 1e-6: log p(x,z) - log q(z|x) does not depend on z."""
    x = X.astype("float64")
    ppca = pv.PPCA(2).fit(x)
    drawn = pv.draws(ppca, x, num_draws=20)
    assert drawn.log_weight.shape == (20, 500)
    assert np.abs(drawn.log_weight.numpy() - ppca.log_prob(x)).max() < 1e-6
    assert np.allclose(drawn.log_lik + drawn.log_prior - drawn.log_q, drawn.log_weight)


@pytest.mark.parametrize("plant", ["variance for scale", "dropped log q", "sign of the mean", "prior of scale 2"])
def test_a_planted_error_breaks_exactness(plant):
    """The oracle of the test before notices the slips that write-ups of VAEs contain."""
    ppca = pv.PPCA(2).fit(X.astype("float64"))
    if plant == "variance for scale":
        ppca.encoder.scale.copy_(ppca.encoder.scale**2)
    elif plant == "sign of the mean":
        ppca.encoder.linear.weight.data.neg_()
    elif plant == "prior of scale 2":
        ppca.prior.scale.fill_(2.0)
    drawn = pv.draws(ppca, X, num_draws=20)
    weights = drawn.log_lik + drawn.log_prior if plant == "dropped log q" else drawn.log_weight
    assert np.abs(weights.numpy() - pv.PPCA(2).fit(X).log_prob(X)).max() > 0.1


def test_densities_are_those_of_pyros_own_trace(vae):
    drawn = pv.draws(vae, X, num_draws=3, seed=1)
    x = vae.batch(X).x
    with torch.no_grad(), pyro.get_param_store().scope():
        guide = poutine.trace(poutine.condition(vae.guide, {"z": drawn.z[1]})).get_trace(x)
        model = poutine.trace(poutine.condition(vae.model, {"z": drawn.z[1]})).get_trace(x)
    guide.compute_log_prob(), model.compute_log_prob()
    assert torch.allclose(drawn.log_q[1].float(), guide.nodes["z"]["log_prob"], atol=1e-5)
    assert torch.allclose(drawn.log_prior[1].float(), model.nodes["z"]["log_prob"], atol=1e-5)
    log_lik = model.nodes["x"]["log_prob"] + vae.schema.log_jacobian
    assert torch.allclose(drawn.log_lik[1].float(), log_lik, atol=1e-4)


def test_draws_follow_the_guide(vae):
    """Means of 2000 draws for 500 rows x 2 dimensions within 5 standard errors: fails by chance at 6e-4."""
    drawn = pv.draws(vae, X, num_draws=2000)
    with torch.no_grad():
        q = vae.encoder(vae.batch(X).x)
    assert (drawn.z.mean(0) - q.mean).abs().div(q.stddev / 2000**0.5).max() < 5
    assert (drawn.z.std(0) / q.stddev - 1).abs().max() < 5 / (2 * 2000) ** 0.5


@pytest.mark.parametrize("num_draws", [1, 3, 200])
def test_a_draw_is_a_function_of_row_model_and_seed(vae, num_draws):
    whole, order = pv.draws(vae, X, num_draws), RANDOM.permutation(500)
    for rows in (order, slice(17, 29), slice(70, 71), slice(None)):
        some = pv.draws(vae, X[rows], num_draws)
        assert torch.allclose(some.z, whole.z[:, rows], rtol=1e-6, atol=1e-7)
        assert torch.allclose(some.log_weight, whole.log_weight[:, rows], rtol=1e-6, atol=1e-6)
    again = pv.draws(vae, X, num_draws)
    assert torch.equal(again.z, whole.z) and torch.equal(again.log_weight, whole.log_weight)
    assert not torch.equal(pv.draws(vae, X, num_draws, seed=1).z, whole.z)


def test_more_draws_begin_with_the_same(vae):
    assert torch.allclose(pv.draws(vae, X, 300).z[:40], pv.draws(vae, X, 40).z, atol=1e-6)


def test_modes_come_back(vae):
    vae.train()
    vae.encoder.eval()
    pv.draws(vae, X[:2])
    assert vae.training and vae.decoder.training and not vae.encoder.training
    vae.train()
    with in_mode(vae, training=False):
        assert not vae.decoder.net[0].training


def broken(decoder):
    return pv.VAE(
        lambda x: dist.Normal(x[..., :2], 1.0).to_event(1),
        decoder,
        lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1),
    )


def test_programs_that_break_the_contract_are_named():
    undeclared = broken(lambda z: dist.Normal(z @ torch.ones(2, 6), 1.0))
    with pytest.raises(pv.ProgramError, match=r"site 'x': .* from the decoder"):
        pv.draws(undeclared, X)
    wrong_size = broken(lambda z: dist.Normal(z @ torch.ones(2, 5), 1.0).to_event(1))
    with pytest.raises(pv.ProgramError, match="rows of 6 columns"):
        pv.draws(wrong_size, X)
    with pytest.raises(pv.ProgramError, match="rows of 6 columns"):
        pv.fit(wrong_size, X, progress=False)


class Extra(torch.nn.Module):
    def forward(self, z):
        w = pyro.sample("w", dist.Normal(torch.zeros(z.shape[:-1]), 1.0))
        return dist.Normal(z @ torch.ones(2, 6) + w[..., None], 1.0).to_event(1)


def test_a_site_of_the_model_alone_is_named():
    with pytest.raises(pv.ProgramError, match="site 'w': got it in the model alone"):
        pv.draws(broken(Extra()), X)


def test_a_guide_outside_the_priors_support_is_named():
    vae = pv.build(X, latent=2, prior=dist.Gamma(torch.ones(2), 1.0).to_event(1))
    for call in (pv.score, lambda v, x: pv.fit(v, x, progress=False)):
        with pytest.raises(pv.ProgramError, match=r"site 'z': got \[.* guide's Normal, .* prior's Gamma"):
            call(vae, X)


class Positive(torch.nn.Module):
    outputs = 2

    def forward(self, loc, raw):
        return dist.LogNormal(loc, torch.nn.functional.softplus(raw) + 0.1).to_event(1)


def test_the_support_is_that_of_the_family_not_of_what_it_is_made_of():
    vae = pv.build(abs(X), likelihood=lambda d: Positive(), standardize="none")
    assert np.isfinite(pv.score(vae, abs(X)).values).all()
    with pytest.raises(pv.DataError, match=r"column 'x\d': got -.*LogNormal"):
        pv.score(vae, X)


@pytest.mark.parametrize("num_draws", [0, -1, 2.0, True, "many"])
def test_bad_num_draws(vae, num_draws):
    with pytest.raises(pv.OptionError, match="num_draws: got"):
        pv.draws(vae, X, num_draws)


def test_values_outside_the_support_name_the_column():
    grey = RANDOM.rand(20, 3)
    grey[:, 0] = 1.0
    vae = pv.build(grey, likelihood="bernoulli", latent=2)
    for call in (pv.draws, pv.score, lambda v, x: pv.fit(v, x, progress=False)):
        with pytest.raises(pv.DataError, match=r"column 'x1': got 0\.\d+ in row 0, expected 0 or 1.*Bernoulli"):
            call(vae, grey)
    with pytest.raises(pv.DataError, match=r"column 'x2': got 2.0 in row 0, expected numbers in \[0, 1\]"):
        pv.score(pv.build(grey, likelihood="continuous_bernoulli"), grey * [1, 1, 0] + [0, 0, 2])


@pytest.mark.parametrize(
    "name",
    [
        "posterior",
        "log_evidence",
        "score",
        "diagnose",
        "gaps",
        "pit",
        "to_arviz",
        "encode",
        "draws",
        "reconstruct",
        "impute",
    ],
)
def test_data_in_the_place_of_the_model(vae, name):
    for rows in (X, pd.DataFrame(X).assign(batch=1.0)):  # a frame has its columns for attributes
        with pytest.raises(pv.OptionError, match=f"vae: got a {type(rows).__name__}, expected a model with its guide"):
            getattr(pv, name)(rows, vae)
    assert len(batch_of(vae, X).x) == len(X)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_weights_that_are_not_finite_are_named(part, value):
    broken = pv.build(X, latent=2, hidden=(4,))
    with torch.no_grad():
        getattr(broken, part).net[0].weight[0, 0] = value
    asked = (
        pv.log_evidence,
        lambda *of: pv.log_evidence(*of, "ais"),
        lambda *of: pv.posterior(*of, "hmc"),
        lambda *of: pv.posterior(*of, "svi"),
        pv.pit,
        pv.last_layer_laplace,
        pv.score,
    )
    for ask in asked:
        with pytest.raises(pv.ProgramError, match=f"parameter '{part}.net.0.weight': got NaN or infinite values"):
            ask(broken, X)


@pytest.mark.parametrize(
    ("r_hat", "said"),
    [
        ([[1.004, 1.0]], "largest r_hat 1.004)"),
        ([[1.02, float("nan")]], "largest r_hat 1.020, not converged)"),
        ([[float("inf"), 1.0]], "largest r_hat inf, not converged)"),
        ([[float("nan")] * 2], "too few or too short chains to tell whether they converged)"),
    ],
)
def test_printed_chains_say_whether_they_converged(r_hat, said):
    one = torch.zeros(10, 1)
    drawn = Draws(torch.zeros(10, 1, 2), {}, one, one, None, None, stats={"method": "hmc", "r_hat": np.array(r_hat)})
    assert repr(drawn).endswith(f"by 'hmc'; {said}") and "\n" not in repr(drawn)
