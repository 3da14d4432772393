"""Discrete latents and partly known classes, against exhaustive sums over their values."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from scipy import integrate, special, stats
from torch.nn.functional import log_softmax, logsigmoid, one_hot

import ppl_vae as pv
from ppl_vae.infer.noise import Keyed, step_keys
from ppl_vae.infer.objectives import objective
from ppl_vae.infer.scope import isolated

RANDOM = np.random.RandomState(0)
X = RANDOM.randint(2, size=(12, 3)) @ RANDOM.randn(3, 4) + 0.3 * RANDOM.randn(12, 4)
NOISE = 0.5
CODES = {
    "bernoulli": torch.tensor(list(itertools.product((0.0, 1.0), repeat=3))).double(),
    "categorical": torch.eye(4).double(),
}


def program(name):
    """A small model in float64, its prior not uniform."""
    latent = CODES[name].shape[1]
    vae = pv.build(X, latent=latent, hidden=(4,), prior=name, posterior=name, scale=NOISE).double()
    with torch.no_grad():
        vae.prior.logits.copy_(torch.linspace(-1, 0.5, latent))
    return vae


def log_mass(name, logits, codes):
    """log p(code) of logits (..., k) at codes that broadcast with them."""
    if name == "categorical":
        return (codes * log_softmax(logits, -1)).sum(-1)
    return (codes * logsigmoid(logits) + (1 - codes) * logsigmoid(-logits)).sum(-1)


def log_normal(x, mean):
    """log N(x; mean, NOISE^2) summed over columns."""
    return (-0.5 * ((x - mean) / NOISE) ** 2 - np.log(NOISE) - 0.5 * np.log(2 * np.pi)).sum(-1)


def exact(vae, name):
    """E_q[log p(x|z)] and KL(q || p), (n,) each, by the sum over all codes; encoded units."""
    x, codes = vae.batch(X).x, CODES[name][:, None]
    log_q = log_mass(name, vae.encoder.net(x), codes)  # (codes, n)
    log_lik, log_p = log_normal(x, vae.decoder.net(codes)), log_mass(name, vae.prior.logits, codes)
    return (log_q.exp() * log_lik).sum(0), (log_q.exp() * (log_q - log_p)).sum(0)


def gradient(vae, loss=None):
    """Of all parameters as one vector; they are left without."""
    if loss is not None:
        loss.backward()
    found = torch.cat([p.grad.flatten() for p in vae.parameters()])
    vae.zero_grad(set_to_none=True)
    return found


def estimated(vae, name, particles, step=0):
    """Loss and gradient of an objective under the noise of `fit`."""
    target = objective(name)
    guide = config_enumerate(vae.guide) if target.enumerates else vae.guide
    keys = step_keys(torch.arange(len(X)), 0, step)
    with isolated(vae), Keyed(keys, reparameterized=target.reparameterized):
        loss = target.make(particles).loss_and_grads(vae.model, guide, vae.batch(X).x)
    return loss, gradient(vae)


def frozen(vae, **options):
    """What `fit` records of a model that it does not move, in encoded units."""
    history = pv.fit(vae, X, epochs=1, lr=0.0, valid=0.0, batch_size=len(X), progress=False, **options)
    shift = vae.schema.log_jacobian
    return {name: history[name][-1] - (0 if name == "kl" else shift) for name in ("bound", "reconstruction", "kl")}


@pytest.mark.parametrize("name", CODES)
def test_enumeration_is_the_sum_over_all_codes_and_so_is_its_gradient(name):
    vae = program(name)
    log_lik, kl = exact(vae, name)
    expected = gradient(vae, -(log_lik - kl).sum())
    bound = float((log_lik - kl).sum().detach())
    loss, found = estimated(vae, "enumerate", 1)
    assert loss == pytest.approx(-bound, abs=1e-8)
    assert torch.allclose(found, expected, atol=1e-8) and expected.abs().max() > 1
    assert frozen(vae, objective="enumerate")["bound"] == pytest.approx(bound / len(X), abs=1e-8)


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("which", ["elbo", "score_function"])
def test_gradients_through_no_draw_are_unbiased(name, which):
    """About 70 coordinates of 300 means of 20 draws, each within 5 standard errors: fails by chance at 4e-5."""
    vae = program(name)
    log_lik, kl = exact(vae, name)
    expected = gradient(vae, -(log_lik - kl).sum())
    found = torch.stack([estimated(vae, which, 20, step)[1] for step in range(300)])
    error = found.std(0) / len(found) ** 0.5
    assert torch.all((found.mean(0) - expected).abs() < 5 * error + 1e-10)
    assert error.median() < 0.1 * expected.abs().median()


@pytest.mark.parametrize("name", CODES)
def test_bounds_of_draws_are_those_of_the_sum(name):
    """12 rows within 5 standard errors: fails by chance at 1e-5."""
    vae = program(name)
    log_lik, kl = exact(vae, name)
    expected = (log_lik - kl).detach().numpy() + vae.schema.log_jacobian
    elbo = pv.score(vae, X, "elbo", num_draws=2000)
    assert np.all(np.abs(elbo.values - expected) < 5 * elbo.mcse)
    joint = log_normal(vae.batch(X).x, vae.decoder.net(CODES[name][:, None]))
    joint = joint + log_mass(name, vae.prior.logits, CODES[name])[:, None]
    log_p = joint.logsumexp(0).detach().numpy() + vae.schema.log_jacobian
    iwae = pv.score(vae, X, "iwae", num_draws=2000)
    assert np.all(np.abs(iwae.values - log_p) < 5 * iwae.mcse)


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("how", ["elbo", "score_function", "enumerate", ("relaxation", {"temperature": 0.3})])
def test_each_way_of_training_raises_the_exact_bound(name, how):
    vae = program(name)
    before = [float(part.mean().detach()) for part in exact(vae, name)]
    before = before[0] - before[1]
    pv.fit(vae, X, objective=how, particles=10, epochs=150, lr=0.05, valid=0.0, progress=False)
    log_lik, kl = exact(vae, name)
    assert float((log_lik - kl).mean().detach()) > before + 1


def kl_of_relaxed_bits(vae):
    """KL(q || p) (n,) of logistic variables: of a bit's relaxation at any one temperature, a bijection of it."""
    q, p = vae.encoder.net(vae.batch(X).x).detach().numpy(), vae.prior.logits.detach().numpy()

    def kl(a, b):
        density = stats.logistic(a)
        return integrate.quad(
            lambda t: density.pdf(t) * (density.logpdf(t) - stats.logistic.logpdf(t, b)), a - 40, a + 40
        )[0]

    return np.vectorize(kl)(q, p).sum(1)


def test_relaxed_bits_keep_a_kl_above_the_discrete_one_at_any_temperature():
    """Means of 48,000 draws to 0.02, over 5 standard errors (1e-6): the relaxed bound tends to less than the discrete."""
    vae = program("bernoulli")
    expected, kl = float(kl_of_relaxed_bits(vae).mean()), float(exact(vae, "bernoulli")[1].mean().detach())
    for temperature in (1.0, 0.3):
        found = frozen(vae, objective=("relaxation", {"temperature": temperature}), particles=4000)
        assert found["kl"] == pytest.approx(expected, abs=0.02)
    assert expected > kl + 0.05


@pytest.mark.parametrize("name", CODES)
def test_relaxed_likelihoods_tend_to_the_discrete_one(name, monkeypatch):
    """Within 0.05 of it at a low temperature, more than 5 standard errors of 48,000 draws, and further away above.

    Of nets and rows that are the same under any seed: how far it is at a temperature is theirs."""
    monkeypatch.setattr("tests.infer.test_discrete.X", np.sin(np.arange(48.0)).reshape(12, 4))
    vae = program(name)
    with torch.no_grad():
        for net in (vae.encoder.net, vae.decoder.net):
            for parameter in net.parameters():
                parameter.copy_(torch.sin(1.0 + torch.arange(parameter.numel())).view_as(parameter))
    log_lik = float(exact(vae, name)[0].mean().detach())
    gaps = []
    for temperature in (1.0, 0.1, 0.02):
        found = frozen(vae, objective=("relaxation", {"temperature": temperature}), particles=4000)
        gaps.append(abs(found["reconstruction"] - log_lik))
    assert gaps[0] > 3 * gaps[1] and gaps[2] < 0.05


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("which", ["iwae", "analytic_kl"])
def test_what_needs_gradients_through_draws_is_refused(name, which):
    with pytest.raises(pv.OptionError, match=f"got '{which}', whose gradient goes through draws.*discrete site 'z'"):
        pv.fit(program(name), X, objective=which, particles=2, progress=False)


def test_what_sums_out_nothing_is_refused_with_an_enumerated_prior_and_the_rest_without_discrete_sites():
    mixture = pv.build(X, latent=2, hidden=(4,), prior="enumerated_mixture", components=3)
    for which in ("iwae", "analytic_kl"):
        with pytest.raises(pv.OptionError, match=f"got '{which}', which does not sum out the site 'component'"):
            pv.fit(mixture, X, objective=which, particles=2, progress=False)
    for which in ("enumerate", "relaxation"):
        with pytest.raises(pv.OptionError, match="expected a guide with a discrete site"):
            pv.fit(pv.build(X, latent=2, hidden=(4,)), X, objective=which, progress=False)


# ---- a class that is known on some rows

LABELS = np.array([*"cabb", *[None] * 8], dtype=object)


def table(labels=LABELS):
    return pd.DataFrame(X, columns=list("pqrs")).assign(kind=labels)


@pytest.fixture
def classes():
    vae = pv.build(table(), latent=2, hidden=(4,), label="kind", scale=NOISE, label_weight=2.0).double()
    with torch.no_grad():
        vae.classes.logits.copy_(torch.tensor([0.5, -0.3, 0.0]))
    return vae


def terms(vae, batch, z):
    """log p(x, y, z) - log q(z|x, y) at z (classes, n, k), and log q(y|x), by hand: (classes, n) each."""
    y = torch.eye(3).double()[:, None].expand(3, len(X), 3)
    x = batch.x.expand(3, *batch.x.shape)
    loc, raw = vae.encoder.net(torch.cat([x, y], -1)).chunk(2, -1)
    scale = torch.nn.functional.softplus(raw) + 1e-3
    log_q = torch.distributions.Normal(loc, scale).log_prob(z).sum(-1)
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1) + log_softmax(vae.classes.logits, -1)[:, None]
    log_lik = log_normal(batch.x, vae.decoder.net(torch.cat([z, y], -1)))
    return log_lik + log_p - log_q, log_softmax(vae.classes.net(batch.x), -1).T


def by_hand(vae, batch, z):
    """The bound (n,): of log p(x, y) where y is known, else the sum over classes."""
    inner, log_q = terms(vae, batch, z)
    known = inner.gather(0, batch.label.clamp(min=0)[None])[0]
    return torch.where(batch.label >= 0, known, (log_q.exp() * (inner - log_q)).sum(0))


def test_bound_is_of_log_p_x_y_where_the_class_is_known_and_the_sum_over_classes_elsewhere(classes):
    vae, batch = classes, classes.batch(table())
    assert batch.label.tolist()[4:] == [-1] * 8 and batch.label.tolist()[:4] == [2, 0, 1, 1]
    args, given = batch.arguments()
    keys = step_keys(torch.arange(len(X)), 0, 0)
    with isolated(vae), torch.no_grad(), Keyed(keys):
        guide = poutine.enum(vae.guide, first_available_dim=-2)
        z = poutine.trace(guide).get_trace(*args, **given).nodes["z"]["value"]
    assert z.shape == (3, len(X), 2)
    expected = float(by_hand(vae, batch, z).sum().detach())
    supervised = terms(vae, batch, z)[1].T[torch.arange(4), batch.label[:4]].sum()
    losses, gradients = [], []
    for training in (False, True):
        vae.train(training)
        with isolated(vae), Keyed(keys):
            elbo = objective("elbo").enumerated(1)
            losses.append(elbo.loss_and_grads(vae.model, vae.guide, *args, **given))
        gradients.append(gradient(vae.classes.net))
    assert losses[0] == pytest.approx(-expected, abs=1e-8)
    assert losses[1] == pytest.approx(-expected - 2.0 * float(supervised.detach()), abs=1e-8)
    assert torch.allclose(gradients[1] - gradients[0], gradient(vae.classes.net, -2.0 * supervised), atol=1e-8)


def test_draws_know_the_class_or_draw_it(classes):
    """Frequencies of 2000 draws of 8 rows and 3 classes within 5 standard errors: fails by chance at 2e-5."""
    batch, drawn = classes.batch(table()), pv.draws(classes, table(), num_draws=2000)
    y = drawn.sites["y"]
    assert y.shape == (2000, 12, 3)
    assert torch.equal(y[:, :4], one_hot(batch.label[:4], 3).double().expand(2000, 4, 3))
    p = classes.classes.net(batch.x).softmax(-1).detach()[4:]
    assert torch.all((y[:, 4:].mean(0) - p).abs() < 5 * (p * (1 - p) / 2000).sqrt())
    first, which = drawn.z[0].expand(3, 12, 2), y[0].argmax(-1)
    inner, log_q = (term.gather(0, which[None])[0].detach() for term in terms(classes, batch, first))
    expected = inner - torch.where(batch.label >= 0, 0.0, log_q) + classes.schema.log_jacobian
    assert torch.allclose(drawn.log_weight[0], expected, atol=1e-8)


def test_log_p_of_a_row_is_the_sum_of_its_log_p_with_each_class(classes):
    """12 rows within 5 Monte Carlo standard errors: fails by chance at 1e-5.

    The encoder gives a normal wider than the prior, so that weights are bounded and errors honest."""
    last = [module for module in classes.encoder.net.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, 0.0, 1.0, 1.0]))
    unknown = pv.score(classes, table(None), "iwae", num_draws=4000)
    each = [pv.score(classes, table(level), "iwae", num_draws=4000) for level in "abc"]
    log_p = special.logsumexp([one.values for one in each], axis=0)
    error = np.sqrt(unknown.mcse**2 + np.max([one.mcse for one in each], axis=0) ** 2)
    assert np.all(np.abs(unknown.values - log_p) < 5 * error) and np.median(error) < 0.1


def test_a_table_without_the_column_is_one_of_unknown_classes(classes):
    bare = table().drop(columns="kind")
    assert classes.batch(bare).label is None or set(classes.batch(bare).label.tolist()) == {-1}
    unknown = pv.score(classes, table(None), "elbo", num_draws=500)
    found = pv.score(classes, bare, "elbo", num_draws=500)
    assert np.all(np.abs(found.values - unknown.values) < 6 * (found.mcse + unknown.mcse))


def clusters(n, apart, known):
    """Rows of two clusters and their names, of which the first few are known."""
    random = np.random.RandomState(3)
    truth = np.where(random.randint(2, size=n) == 1, "up", "down").astype(object)
    x = apart * np.where(truth == "up", 1.0, -1.0)[:, None] * [1.0, -1.0, 0.5] + random.randn(n, 3)
    return pd.DataFrame(x, columns=list("abc")).assign(kind=np.where(np.arange(n) < known, truth, None)), truth


def test_a_few_labels_name_two_clusters():
    frame, truth = clusters(300, apart=3.0, known=6)
    vae = pv.build(frame, latent=1, hidden=(8,), label="kind")
    pv.fit(vae, frame, epochs=30, lr=0.02, batch_size=64, progress=False)
    assert np.mean(pv.classify(vae, frame).idxmax(axis=1) == truth) > 0.98


def test_a_fitted_classifier_gives_the_responsibilities_of_the_classes():
    """p(y|x) by Bayes' rule from log p(x, y) of each class, which a classifier trained on the bound comes close to."""
    frame, _ = clusters(400, apart=0.8, known=100)
    vae = pv.build(frame, latent=1, hidden=(8,), label="kind", scale="feature")
    pv.fit(vae, frame, epochs=60, lr=0.03, batch_size=100, particles=4, progress=False)
    found = pv.classify(vae, frame)
    each = [pv.score(vae, frame.assign(kind=level), "iwae", num_draws=500).values for level in found.columns]
    exact = special.softmax(each, axis=0).T
    assert np.allclose(found.sum(axis=1), 1.0) and exact.std(0).min() > 0.25
    assert np.abs(found.to_numpy() - exact).mean() < 0.05
