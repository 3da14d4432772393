"""Every objective of our own against the same formula written out in plain torch, and what they share."""

import numpy as np
import pyro
import pytest
import torch
import torch.distributions as td
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import softplus

import ppl_vae as pv
from ppl_vae.infer.elbo import TensorELBO, attached, detached, leaf
from ppl_vae.infer.handlers import surroundings
from ppl_vae.infer.mmd import PRIOR
from ppl_vae.infer.noise import Keyed, mix, step_keys
from ppl_vae.infer.objectives import objective
from ppl_vae.infer.scope import isolated
from ppl_vae.infer.wake_sleep import DREAM

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(12, 2) @ RANDOM.randn(2, 4) + 0.5 * RANDOM.randn(12, 4)
ROWS = torch.arange(12)
K, NOISE = 4, 0.5


@pytest.fixture
def vae():
    """Normal in every part, in float64, with a nonlinear net each way."""
    return pv.build(X, latent=2, hidden=(5,), scale=NOISE).double()


def evaluated(vae, choice, particles=K, step=0, kl_weight=None):
    """Loss and gradients {parameter: gradient} under the noise that `fit` would use."""
    target = objective(choice, particles)
    elbo, keys = target.make(particles), step_keys(ROWS, 0, step)
    vae.zero_grad(set_to_none=True)
    with isolated(vae), surroundings(target, elbo, ROWS, keys, kl_weight=kl_weight):
        loss = elbo.loss_and_grads(vae.model, vae.guide, vae.batch(X).x)
    gradients = {name: p.grad for name, p in vae.named_parameters()}
    vae.zero_grad(set_to_none=True)
    return loss, gradients


class Hand:
    """Log densities of one step, written out. `z` has its gradient, `fixed` is the same as numbers."""

    def __init__(self, vae, particles):
        self.vae, self.x = vae, vae.batch(X).x
        with isolated(vae), Keyed(step_keys(ROWS, 0, 0)), torch.no_grad(), pyro.plate("k", particles, dim=-2):
            self.fixed = vae.guide(self.x)
        self.loc, self.scale = self.q(self.x)
        self.z = self.loc + self.scale * ((self.fixed - self.loc) / self.scale).detach()

    def q(self, x):
        loc, raw = self.vae.encoder.net(x).chunk(2, -1)
        return loc, softplus(raw) + 1e-3

    def log_lik(self, z):
        return td.Normal(self.vae.decoder.net(z), NOISE).log_prob(self.x).sum(-1)

    def log_prior(self, z):
        return td.Normal(0.0, 1.0).log_prob(z).sum(-1)

    def log_p(self, z):
        return self.log_lik(z) + self.log_prior(z)

    def log_q(self, z, held=False):
        loc, scale = (self.loc.detach(), self.scale.detach()) if held else (self.loc, self.scale)
        return td.Normal(loc, scale).log_prob(z).sum(-1)

    def log_weight(self):
        return self.log_p(self.z) - self.log_q(self.z)

    def share(self):
        return self.log_weight().detach().exp() / self.log_weight().detach().exp().sum(0)


def iwae(log_weight):
    return log_weight.exp().mean(0).log()


def sticking(h):
    inside = h.log_p(h.z) - h.log_q(h.z, held=True)
    return h.log_weight().mean(0), {"encoder": inside.mean(0), "decoder": inside.mean(0)}


def sticking_iwae(h):
    inside = h.share() * (h.log_p(h.z) - h.log_q(h.z, held=True))
    return iwae(h.log_weight()), {"encoder": inside.sum(0), "decoder": inside.sum(0)}


def dreg(h):
    inside = h.log_p(h.z) - h.log_q(h.z, held=True)
    return iwae(h.log_weight()), {
        "encoder": (h.share() ** 2 * inside).sum(0),
        "decoder": (h.share() * inside).sum(0),
    }


def through(value):
    return lambda h: (value(h), {"encoder": value(h), "decoder": value(h)})


def renyi(h):
    return 2.0 * h.log_weight().mul(0.5).exp().mean(0).log()


def groups(h):
    return torch.stack([iwae(part) for part in h.log_weight().split(K)]).mean(0)


def vimco(h):
    log_weight, total = h.log_weight().detach(), 0
    for k in range(K):
        others = [j for j in range(K) if j != k]
        stand_in = torch.stack([log_weight[j] for j in others]).mean(0).exp()
        without = ((sum(log_weight[j].exp() for j in others) + stand_in) / K).log()
        total = total + (iwae(log_weight) - without) * h.log_q(h.fixed)[k]
    share = h.share()
    pathless = (share * (h.log_p(h.fixed) - h.log_q(h.fixed))).sum(0)
    return iwae(log_weight), {"encoder": total + pathless, "decoder": pathless}


def reweighted(h):
    share = h.share()
    return iwae(h.log_weight()), {
        "encoder": (share * h.log_q(h.fixed)).sum(0),
        "decoder": (share * h.log_p(h.fixed)).sum(0),
    }


def leave_one_out(h):
    log_weight, total = h.log_weight().detach(), 0
    for k in range(K):
        baseline = torch.stack([log_weight[j] for j in range(K) if j != k]).mean(0)
        total = total + (log_weight[k] - baseline) * h.log_q(h.fixed)[k] / K
    return log_weight.mean(0), {"encoder": total, "decoder": h.log_p(h.fixed).mean(0)}


def plain_score(h):
    log_weight = h.log_weight().detach()
    return log_weight.mean(0), {
        "encoder": (log_weight * h.log_q(h.fixed)).mean(0),
        "decoder": h.log_p(h.fixed).mean(0),
    }


def wake_sleep(h):
    with isolated(h.vae), Keyed(mix(step_keys(ROWS, 0, 0) + DREAM)), torch.no_grad():
        trace = pyro.poutine.trace(h.vae.model).get_trace(n=len(X))
    x, z = trace.nodes["x"]["value"], trace.nodes["z"]["value"]
    return h.log_weight().mean(0), {
        "encoder": td.Normal(*h.q(x)).log_prob(z).sum(-1),
        "decoder": h.log_p(h.fixed).mean(0),
    }


def weighted(weight):
    def value(h):
        return (h.log_lik(h.z) + weight * (h.log_prior(h.z) - h.log_q(h.z))).mean(0)

    return through(value)


def kl_terms(h):
    return 0.5 * (h.loc**2 + h.scale**2 - 2 * h.scale.log() - 1)


def floor(h):
    """Between the means of both dimensions, and above a row of the larger: the batch decides, not a row."""
    kl = kl_terms(h).detach()
    larger = kl[:, kl.mean(0).argmax()]
    return float(torch.maximum(kl.mean(0).min(), larger.min()) + larger.mean()) / 2


def free_bits(h):
    return h.log_lik(h.z).mean(0) - (kl_terms(h).mean(0).max() + floor(h))


def mmd(h):
    """The paper's terms one by one, the distance by its definition over pairs of rows; K batches of draws."""
    with isolated(h.vae), Keyed(mix(step_keys(ROWS, 0, 0) + PRIOR)), torch.no_grad():
        with pyro.plate("k", K, dim=-2), pyro.plate("data", 12, dim=-1):
            others = pyro.sample("z", h.vae.prior())

    def kernel(a, b):
        return 4 / (4 + (a - b).square().sum())

    pairs = [(i, j) for i in range(12) for j in range(12)]
    distance = 0
    for k in range(K):
        z, p = h.z[k], others[k]
        same = sum(kernel(z[i], z[j]) + kernel(p[i], p[j]) for i, j in pairs if i != j) / (12 * 11)
        distance = distance + (same - 2 * sum(kernel(z[i], p[j]) for i, j in pairs) / 144) / K
    kl = (h.log_q(h.z) - h.log_prior(h.z)).mean(0)
    return h.log_lik(h.z).mean(0) - (1 - 0.25) * kl - (0.25 + 10.0 - 1) * distance


HAND = {
    "sticking_the_landing": sticking,
    ("sticking_the_landing", "iwae"): sticking_iwae,
    "iwae": through(lambda h: iwae(h.log_weight())),
    "dreg": dreg,
    "renyi": through(renyi),
    ("mean_iwae", 3): through(groups),
    "vimco": vimco,
    "reweighted_wake_sleep": reweighted,
    "wake_sleep": wake_sleep,
    ("score_function", "leave_one_out"): leave_one_out,
    ("score_function", "decaying"): plain_score,  # in its first step
    "score_function": plain_score,
    "elbo": weighted(1.0),
    "trace_graph": weighted(1.0),
    ("beta", 2.5): weighted(2.5),
    "cyclic": weighted(1.0),
    "free_bits": through(free_bits),
    ("mmd", 0.25): through(mmd),
}


def choice(key, h=None):
    if key == "free_bits":
        return key, {"bits": floor(h)}
    if isinstance(key, str):
        return key
    (option,) = [name for name in objective(key[0]).options if name in ("bound", "groups", "baseline", "beta", "alpha")]
    return key[0], {option: key[1]}


@pytest.mark.parametrize("key", HAND, ids=str)
def test_loss_and_gradient_are_those_written_out(vae, key):
    h = Hand(vae, K * 3 if key == ("mean_iwae", 3) else K)
    loss, found = evaluated(vae, choice(key, h))
    value, surrogates = HAND[key](h)
    assert loss == pytest.approx(-float(value.sum().detach()), abs=1e-9)
    parameters = dict(vae.named_parameters())
    for part, surrogate in surrogates.items():
        own = [name for name in parameters if name.startswith(part)]
        expected = torch.autograd.grad(-surrogate.sum(), [parameters[n] for n in own], retain_graph=True)
        assert max(float(g.abs().max()) for g in expected) > 0.1
        assert all(torch.allclose(found[name], g, atol=1e-8) for name, g in zip(own, expected))


@pytest.mark.parametrize("key", ["sticking_the_landing", ("score_function", "leave_one_out")], ids=str)
def test_a_weight_of_the_kl_term_is_a_factor_of_it_and_not_of_the_score(vae, key):
    """Warm-up: the loss is the weighted one; in 100 steps of 32 draws the gradient is elbo's, 4.5 standard errors: 3e-4."""
    weight, h = 0.25, Hand(vae, K)
    expected = (h.log_lik(h.z) + weight * (h.log_prior(h.z) - h.log_q(h.z))).mean(0).sum()
    assert evaluated(vae, choice(key), kl_weight=weight)[0] == pytest.approx(-float(expected.detach()), abs=1e-9)

    def flat(name, step):
        return torch.cat([g.flatten() for g in evaluated(vae, name, 32, step, weight)[1].values()])

    found, plain = (torch.stack([flat(name, step) for step in range(100)]) for name in (choice(key), "elbo"))
    error = torch.hypot(found.std(0), plain.std(0)) / 10
    assert torch.all((found.mean(0) - plain.mean(0)).abs() < 4.5 * error + 1e-12)


@pytest.mark.parametrize("name", ["wake_sleep", "vimco", "reweighted_wake_sleep", ("score_function", "leave_one_out")])
def test_no_gradient_goes_through_draws_even_where_they_have_one(vae, name):
    _, expected = evaluated(vae, choice(name))
    elbo, keys = objective(choice(name)).make(K), step_keys(ROWS, 0, 0)
    elbo.at(ROWS, keys)
    with isolated(vae), Keyed(keys):
        elbo.loss_and_grads(vae.model, vae.guide, vae.batch(X).x)
    assert all(torch.allclose(p.grad, expected[key], atol=1e-10) for key, p in vae.named_parameters())


def test_no_gradient_is_asked_for_in_evaluation(vae):
    for name in ("dreg", "sticking_the_landing"):
        elbo = objective(name).make(K)
        with isolated(vae), Keyed(step_keys(ROWS, 0, 0)):
            assert elbo.loss(vae.model, vae.guide, vae.batch(X).x) == pytest.approx(evaluated(vae, name)[0], abs=1e-12)


def test_places():
    z = torch.zeros(2, requires_grad=True) * 2
    assert attached(z) is z and not detached(z).requires_grad and leaf(z).is_leaf and leaf(z).requires_grad
    with torch.no_grad():
        assert not leaf(z).requires_grad


@pytest.mark.parametrize("name", ["dreg", "vimco", "wake_sleep", "mmd"])
def test_loss_and_gradient_can_be_traced_to_a_graph_of_tensors(vae, name):
    """Traced on some rows and keys, replayed on others."""
    target, x, parameters = objective(name), vae.batch(X).x, list(vae.parameters())
    elbo = target.make(3)

    def both(x, keys):
        with surroundings(target, elbo, ROWS, keys):
            loss = elbo.differentiable_loss(vae.model, vae.guide, x)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return loss, *(g for g in gradients if g is not None)

    with isolated(vae):
        graph = make_fx(both)(x, step_keys(ROWS, 0, 0))
        other = x + 0.1, step_keys(ROWS, 0, 1)
        assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(graph(*other), both(*other), strict=True))


class Remembering(TensorELBO):
    """A state for each row, moved in each step, and no guide: what Monte Carlo EM needs."""

    def __init__(self, particles):
        super().__init__(particles)
        self.visits, self.seen = torch.zeros(0), []

    def at(self, numbers, keys):
        super().at(numbers, keys)
        self.seen.append(keys)
        missing = int(numbers.max()) + 1 - len(self.visits)
        self.visits = torch.cat([self.visits, torch.zeros(max(missing, 0))])
        self.visits[numbers] += 1

    def differentiable_loss(self, model, guide, *args, **kwargs):
        z = torch.zeros(len(args[0]), 2)
        trace = pyro.poutine.trace(pyro.condition(model, {"z": z})).get_trace(*args, **kwargs)
        trace.compute_log_prob()
        return -trace.nodes["x"]["log_prob"].sum()


def test_an_objective_may_keep_a_state_for_each_row_and_leave_the_guide_alone():
    x, made = X.astype("float32"), []

    def make(particles):
        made.append(Remembering(particles))
        return made[-1]

    vae = pv.build(x, latent=2, hidden=(5,))
    before = {name: p.clone() for name, p in vae.named_parameters()}
    target = objective("elbo")._replace(make=make, trains_guide=False)
    history = pv.fit(vae, x, objective=target, epochs=3, batch_size=5, valid=0.25, progress=False)
    (elbo,) = made
    assert sorted(elbo.visits.tolist()) == [0, 0, 0, *[3] * 9]  # three rows held out
    assert len({tuple(keys.tolist()) for keys in elbo.seen}) == 6 == len(elbo.seen)
    for name, p in vae.named_parameters():
        assert torch.equal(p, before[name]) is name.startswith("encoder") or "decoder.net.0.weight" in name  # z = 0
    assert np.isnan(history["bound"]).all() and np.isnan(history["kl"]).all() and np.isnan(history["valid_bound"]).all()
    assert np.isfinite(history["reconstruction"]).all() and history["objective"][-1] > history["objective"][0]
    with pytest.raises(pv.OptionError, match=r"patience: got 3 .* no bound to watch"):
        pv.fit(vae, x, objective=target, patience=3, progress=False)
