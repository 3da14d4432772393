import copy
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import integrate, linalg, stats
from torch import nn

import ppl_vae as pv
from ppl_vae.errors import OptionError
from ppl_vae.model.priors import PRIORS, Setting
from ppl_vae.model.shrinkage import GammaNormal


def density(size, a=0.7, b=0.4) -> GammaNormal:
    return GammaNormal(size, torch.tensor(a).double(), torch.tensor(b).double())


def test_gamma_normal_integrates_to_one():
    total = integrate.quad(lambda w: math.exp(density(1).log_prob(torch.tensor([w]).double())), -math.inf, math.inf)[0]
    assert total == pytest.approx(1.0, abs=1e-6)
    radial = integrate.quad(
        lambda r: 2 * math.pi * r * math.exp(density(2).log_prob(torch.tensor([r, 0.0]).double())), 0, math.inf
    )[0]
    assert radial == pytest.approx(1.0, abs=1e-6)


def test_gamma_normal_is_the_integral_over_the_precision_and_pyros_multivariate_t():
    w, a, b = torch.tensor([0.5, -1.2, 0.1]).double(), 0.7, 0.4
    by_hand = integrate.quad(
        lambda t: stats.gamma.pdf(t, a, scale=1 / b) * stats.norm.pdf(w.numpy(), 0, t**-0.5).prod(), 0, math.inf
    )[0]
    assert float(density(3, a, b).log_prob(w)) == pytest.approx(math.log(by_hand), abs=1e-6)
    tril = math.sqrt(b / a) * torch.eye(3).double()
    student = dist.MultivariateStudentT(torch.tensor(2 * a).double(), torch.zeros(3).double(), tril)
    assert torch.allclose(density(3, a, b).log_prob(w), student.log_prob(w))


def test_gamma_normal_draws_follow_the_density():
    """Kolmogorov-Smirnov of |w|^2 b' against its F distribution, n = 20,000; fails by chance at 1e-4."""
    a, b, d = 1.5, 0.4, 3
    w = density(d, a, b).sample((20000,))
    f = w.square().sum(-1) * a / b / d  # of a multivariate t with 2a degrees of freedom
    assert stats.kstest(f, stats.f(d, 2 * a).cdf).pvalue > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gamma_normal_is_finite_at_tiny_options(dtype):
    w = torch.zeros(2, 300, dtype=dtype)
    w[1] = 1.0
    w.requires_grad_()
    p = GammaNormal(300, torch.tensor(1e-4, dtype=dtype), torch.tensor(1e-4, dtype=dtype)).expand((2,))
    p.log_prob(w).sum().backward()
    assert p.log_prob(w).isfinite().all() and w.grad.isfinite().all()
    assert p.log_prob(w)[0] > p.log_prob(w)[1]  # the spike at 0


def trace(prior, plate=None):
    def program():
        if plate is None:
            return prior.global_sites()
        with pyro.plate("draws", plate, dim=-2):
            return prior.global_sites()

    return poutine.trace(program).get_trace()


@pytest.mark.parametrize("name", ["ard", "horseshoe"])
def test_first_layer_is_observed_outside_and_not_registered_twice(name):
    layer = nn.Linear(6, 5)  # the last two columns belong to covariates
    prior = PRIORS[name].make(Setting(4, first_layer=layer))
    assert not list(prior.parameters()) and prior().event_shape == (4,)
    nodes = trace(prior).nodes
    assert nodes["first_layer"]["is_observed"] and torch.equal(nodes["first_layer"]["value"], layer.weight[:, :4].T)
    trace(prior).log_prob_sum().backward()
    assert layer.weight.grad[:, :4].abs().min() > 0 and layer.weight.grad[:, 4:].abs().max() == 0


@pytest.mark.parametrize("name", ["ard", "horseshoe"])
def test_outside_inference_nothing_is_observed_and_a_copy_keeps_the_tie(name):
    layer = nn.Linear(4, 5)
    prior = PRIORS[name].make(Setting(4, first_layer=layer))
    prior.global_sites()  # a warning would fail the test
    pair = nn.ModuleDict({"decoder": layer, "prior": prior})
    copied = copy.deepcopy(pair)
    assert copied["prior"].weights.data_ptr() == copied["decoder"].weight.data_ptr() != layer.weight.data_ptr()


def test_horseshoe_by_hand_and_under_a_plate_of_draws():
    layer = nn.Linear(3, 5)
    prior = PRIORS["horseshoe"].make(Setting(3, first_layer=layer), global_scale=0.3, slab=1.5)
    nodes = trace(prior).nodes
    tau, local = nodes["global_scale"]["value"], nodes["local_scale"]["value"]
    assert tau.shape == () and local.shape == (3,)
    scale = tau * (1.5**2 * local**2 / (1.5**2 + tau**2 * local**2)).sqrt()
    expected = dist.Normal(0.0, scale).log_prob(layer.weight).sum()
    assert torch.allclose(nodes["first_layer"]["fn"].log_prob(layer.weight.T), expected, rtol=1e-4)
    drawn = trace(prior, plate=7).nodes
    assert drawn["global_scale"]["value"].shape == (7, 1) and drawn["local_scale"]["value"].shape == (7, 1, 3)
    assert drawn["first_layer"]["fn"].log_prob(layer.weight.T).shape == (7, 1)


def test_kept_counts_columns_that_stand_out():
    layer = nn.Linear(4, 6)
    prior = PRIORS["ard"].make(Setting(3, first_layer=layer))
    with torch.no_grad():
        layer.weight.zero_()
        assert prior.kept() == 0
        layer.weight[:, 0], layer.weight[:, 1], layer.weight[:, 2], layer.weight[:, 3] = 2.0, -0.1, 1.0, 50.0
    assert prior.kept() == 2 and prior.kept(threshold=0.01) == 3 and prior.kept(threshold=0.6) == 1


@pytest.mark.parametrize("name, rest", [("ard", {}), ("horseshoe", {"global_scale": 0.1})])
def test_five_dimensions_of_twenty_are_kept_where_the_data_have_five(name, rest):
    """Linear decoder, z integrated out: x ~ N(0, W W' + noise), the weights at their maximum a posteriori."""
    n, d, true, latent = 400, 20, 5, 12
    basis = torch.linalg.qr(torch.randn(d, true))[0] * torch.linspace(3, 1.5, true)
    x = torch.randn(n, true) @ basis.T + 0.5 * torch.randn(n, d)
    layer = nn.Linear(latent, d, bias=False)
    prior = PRIORS[name].make(Setting(latent, first_layer=layer), **rest)
    if name == "horseshoe":  # its scales at their maximum too, in log coordinates
        scales = {"global_scale": torch.tensor(-2.0), "local_scale": torch.zeros(latent)}
        scales = {site: value.requires_grad_() for site, value in scales.items()}
    else:
        scales = {}
    raw = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([layer.weight, raw, *scales.values()], lr=0.03)
    covariance = x.T @ x

    for _ in range(600):
        optimizer.zero_grad()
        sigma = layer.weight @ layer.weight.T + (raw.exp() + 1e-3) * torch.eye(d)
        log_lik = -0.5 * (n * torch.logdet(sigma) + torch.trace(torch.linalg.solve(sigma, covariance)))
        values = {site: value.exp() for site, value in scales.items()}
        conditioned = poutine.condition(prior.global_sites, data=values)
        log_prior = poutine.trace(conditioned).get_trace().log_prob_sum() + sum(v.sum() for v in scales.values())
        (-(log_lik + log_prior) / n).backward()
        optimizer.step()
    assert prior.kept() == true


def fitted(prior):
    """A linear model of 20 dimensions, by `build` and `fit`, of 300 rows that have 5, with as much noise as signal."""
    random = np.random.RandomState(0)
    loadings = np.linalg.qr(random.randn(20, 5))[0] * np.linspace(3, 1.5, 5)
    x = random.randn(300, 5) @ loadings.T + random.randn(300, 20)
    vae = pv.build(x, latent=20, hidden=(), prior=prior, scale="shared", standardize="center")
    options = {"objective": "analytic_kl", "epochs": 250, "lr": 0.02, "batch_size": 100, "valid": 0.0}
    pv.fit(vae, x, progress=False, **options)
    return vae, loadings


@pytest.mark.parametrize("name", ["ard", "horseshoe"])
def test_a_fitted_model_reports_the_five_dimensions_of_twenty(name):
    """The kept columns span the plane of the loadings, up to an angle whose sine 300 rows leave at about a fifth."""
    vae, loadings = fitted(name)
    assert vae.prior.kept() == vae.prior.kept(threshold=0.02) == 5
    weight = vae.decoder.net[0].weight.detach()
    kept = weight[:, weight.square().sum(0).topk(5).indices].numpy()
    assert np.sin(linalg.subspace_angles(kept, loadings)).max() < 0.35


def test_without_shrinkage_more_dimensions_stand_out():
    vae, _ = fitted("standard_normal")
    size = vae.decoder.net[0].weight.detach().square().mean(0).sqrt()
    assert (size > 0.1 * size.max()).sum() >= 8


@pytest.mark.parametrize("name", ["ard", "horseshoe"])
@pytest.mark.parametrize("layer", [None, nn.Linear(2, 5), nn.Conv2d(1, 1, 1)])
def test_a_decoder_without_a_linear_first_layer_is_refused(name, layer):
    with pytest.raises(OptionError, match=f"{name}.*linear layer"):
        PRIORS[name].make(Setting(3, first_layer=layer))


def test_bad_options_are_refused():
    setting = Setting(2, first_layer=nn.Linear(2, 3))
    with pytest.raises(OptionError, match="ard_rate"):
        PRIORS["ard"].make(setting, ard_rate=0.0)
    with pytest.raises(OptionError, match="slab"):
        PRIORS["horseshoe"].make(setting, slab=-1)
