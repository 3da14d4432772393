"""What holds of every objective by name: it trains, its history tells the truth, and hidden cells tell it nothing."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import ppl_vae as pv
from ppl_vae.infer.handlers import surroundings
from ppl_vae.infer.noise import step_keys
from ppl_vae.infer.objectives import OBJECTIVES, objective
from ppl_vae.infer.run import VALIDATION
from ppl_vae.infer.scope import isolated

GREY = (load_digits().data[:300] / 16).astype("float32")
BITS = (GREY > 0.5).astype("float32")
HOLES = np.where(np.random.RandomState(0).rand(*BITS.shape) < 0.2, np.nan, BITS)
MORE = {
    "rloo": ("score_function", {"baseline": "leave_one_out"}),
    "decaying": ("score_function", {"baseline": "decaying"}),
    "sticking iwae": ("sticking_the_landing", {"bound": "iwae"}),
    "infovae": ("mmd", {"alpha": 0.5}),
    "upper renyi": ("renyi", {"alpha": -1.0}),
}
CHOICES = {name: name for name in OBJECTIVES} | MORE
CONTINUOUS = [name for name in CHOICES if name not in ("enumerate", "relaxation")]
AMORTIZED = [name for name in CONTINUOUS if objective(CHOICES[name]).trains_guide]
DISCRETE = [name for name, choice in CHOICES.items() if objective(choice).discrete]


def model(kind):
    """A small model and its data: real pixels, pixels of 0 and 1 under discrete codes, and some of them missing."""
    options = {"latent": 4, "hidden": (16,)}
    if kind == "normal":
        return pv.build(GREY, **options), GREY
    if kind == "discrete":
        return pv.build(BITS, likelihood="bernoulli", prior="bernoulli", posterior="bernoulli", **options), BITS
    return pv.build(HOLES, likelihood="bernoulli", nullable=True, **options), HOLES


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in ("normal", "missing") for name in AMORTIZED] + [("discrete", name) for name in DISCRETE],
)
def test_it_trains(kind, name):
    """The bound of the same rows, under the same noise, is higher after four passes."""
    vae, x = model(kind)
    before = pv.score(vae, x, "iwae", num_draws=8).values
    start = {key: p.clone() for key, p in vae.named_parameters()}
    options = {"particles": 3, "epochs": 4, "lr": 1e-2, "batch_size": 100, "valid": 0.1, "progress": False}
    history = pv.fit(vae, x, objective=CHOICES[name], **options)
    gain = pv.score(vae, x, "iwae", num_draws=8).values - before
    assert gain.mean() > 1 and np.isfinite(history["valid_bound"]).all()
    assert history["bound"][-1] > history["bound"][0] + 1 and history["valid_bound"][-1] > history["valid_bound"][0]
    assert not any(torch.equal(p, start[key]) for key, p in vae.named_parameters())


@pytest.mark.parametrize("name", [name for name in AMORTIZED if name != "mean_iwae"])
def test_its_history_has_the_figures_of_the_rows_themselves(name):
    """Nothing moves and the draws are the same: so are the bound, its two terms, and the bound of held-out rows."""
    found = {}
    for which in (CHOICES[name], "iwae" if objective(CHOICES[name]).bound == "iwae" else "elbo"):
        vae, x = model("missing")
        options = {"particles": 3, "epochs": 1, "lr": 0.0, "batch_size": 100, "valid": 0.1, "progress": False}
        found[str(which)] = pv.fit(vae, x, objective=which, **options).epochs[-1]
    mine, plain = found[str(CHOICES[name])], list(found.values())[-1]
    for figure in ("bound", "reconstruction", "kl", "valid_bound"):
        assert mine[figure] == pytest.approx(plain[figure], rel=1e-5)
    other = name in ("renyi", "upper renyi", "beta", "cyclic", "free_bits", "mmd", "infovae", "analytic_kl")
    assert other or mine["objective"] == pytest.approx(mine["bound"], abs=1e-3)


def test_the_history_of_groups_is_the_mean_of_their_bounds():
    vae, x = model("normal")
    choice = ("mean_iwae", {"groups": 5})
    options = {"particles": 3, "epochs": 1, "lr": 0.0, "batch_size": 300, "valid": 0.1, "progress": False}
    mine = pv.fit(vae, x, objective=choice, **options).epochs[-1]
    assert mine["objective"] == pytest.approx(mine["bound"], abs=1e-3)
    drawn = pv.draws(vae, x, num_draws=300).log_weight
    iwae = {k: float(drawn.unflatten(0, (-1, k)).logsumexp(1).mean() - np.log(k)) for k in (1, 3, 15)}
    assert abs(mine["bound"] - iwae[3]) < 0.3 * min(iwae[3] - iwae[1], iwae[15] - iwae[3])
    held_out = x[torch.randperm(300, generator=torch.Generator().manual_seed(0))[:30].numpy()]
    drawn = pv.draws(vae, held_out, num_draws=15, seed=VALIDATION).log_weight
    expected = float((drawn.view(5, 3, 30).logsumexp(1) - np.log(3)).mean())
    assert mine["valid_bound"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_hidden_cells_change_no_bit_of_loss_or_gradient(name):
    vae, x = model("missing")
    batch, target, numbers = vae.batch(x), objective(CHOICES[name]), torch.arange(len(x))
    assert batch.mask is not None
    seen = []
    for hidden in (0.0, float("nan"), 1e30):
        vae.zero_grad(set_to_none=True)
        cells = torch.where(batch.mask, batch.x, hidden)
        elbo = target.make(2)
        with isolated(vae), surroundings(target, elbo, numbers, step_keys(numbers, 0, 0)):
            loss = elbo.loss_and_grads(vae.model, vae.guide, cells, batch.mask)
        seen.append([torch.tensor(loss), *(p.grad for p in vae.parameters() if p.grad is not None)])
    assert len(seen[0]) > 4 and len({len(values) for values in seen}) == 1
    assert all(torch.isfinite(value).all() for value in seen[0])
    assert all(torch.equal(a, b) for other in seen[1:] for a, b in zip(seen[0], other))


@pytest.mark.parametrize("name", [name for name in CONTINUOUS if objective(CHOICES[name]).per_row])
def test_a_row_is_fitted_by_itself_alone(name):
    """The loss of a batch is the sum of the losses of its halves, under the same keys: nothing is joint over the rows."""
    vae, x = model("missing")
    batch, target, numbers = vae.batch(x).rows(slice(40)), objective(CHOICES[name]), torch.arange(40)

    def loss_and_gradient(rows):
        vae.zero_grad(set_to_none=True)
        elbo = target.make(2)
        with isolated(vae), surroundings(target, elbo, numbers[rows], step_keys(numbers[rows], 0, 0)):
            loss = elbo.loss_and_grads(vae.model, vae.guide, *batch.rows(rows).arguments()[0])
        return loss, torch.cat([p.grad.flatten() for p in vae.parameters() if p.grad is not None])

    whole, *halves = (loss_and_gradient(rows) for rows in (slice(40), slice(15), slice(15, 40)))
    assert whole[0] == pytest.approx(halves[0][0] + halves[1][0], rel=1e-5)
    assert torch.allclose(whole[1], halves[0][1] + halves[1][1], rtol=1e-3, atol=1e-3)


def test_the_weight_of_the_kl_term_is_kept_at_the_end_of_each_epoch():
    x = GREY[:100]
    options = {"epochs": 8, "batch_size": 50, "lr": 0.0, "valid": 0.0, "progress": False}

    def weights(choice, **more):
        return pv.fit(pv.build(x, latent=2, hidden=(4,)), x, objective=choice, **options, **more)["kl_weight"].tolist()

    assert weights("elbo") == [1.0] * 8 and weights("elbo", kl_warmup=2) == [0.5] + [1.0] * 7
    assert weights(("beta", {"beta": 3})) == [3.0] * 8 and weights(("beta", {"beta": 3}), kl_warmup=2)[0] == 1.5
    # two cycles of 8 steps, two steps an epoch: at steps 1, 3, 5, 7 of each, 1/8, 3/8, ... of a cycle
    assert weights(("cyclic", {"cycles": 2, "share": 0.5})) == [0.25, 0.75, 1.0, 1.0] * 2


def test_weights_over_a_fit():
    weight = objective(("cyclic", {"cycles": 4, "share": 0.5})).kl_weight
    assert [weight(p) for p in (0.0, 0.0625, 0.125, 0.2, 0.25, 0.3125, 1.0)] == [0, 0.5, 1, 1, 0, 0.5, 1]
    assert objective("elbo").kl_weight(0.3) == 1.0 and objective("beta").kl_weight(0.9) == 4.0
