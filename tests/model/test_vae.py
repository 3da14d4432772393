import copy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO

import ppl_vae as pv
from ppl_vae.model.vae import key


@pytest.fixture(autouse=True)
def own_store():
    with pyro.get_param_store().scope():
        yield


def small(**options):
    return pv.build(np.random.RandomState(0).randn(50, 4), latent=2, hidden=(8,), **options)


def test_the_programs_have_the_sites_and_plate_of_the_contract():
    vae, x = small(), torch.randn(7, 4)
    model, guide = poutine.trace(vae.model).get_trace(x), poutine.trace(vae.guide).get_trace(x)
    assert {n for n, s in model.nodes.items() if s["type"] == "sample"} == {"data", "z", "x"}
    assert {n for n, s in guide.nodes.items() if s["type"] == "sample"} == {"data", "z"}
    assert model.nodes["x"]["is_observed"] and not model.nodes["z"]["is_observed"]
    for site in (model.nodes["z"], model.nodes["x"], guide.nodes["z"]):
        assert [(f.name, f.dim, f.size) for f in site["cond_indep_stack"]] == [("data", -1, 7)]
    assert vae.model(n=3).shape == (3, 4)
    with pytest.raises(pv.OptionError, match="neither x nor n"):
        vae.model()


def test_users_can_train_it_with_pyro_alone():
    """Two VAEs in one parameter store: Pyro silently never trains the second where names are equal."""
    first, second = small(), small()
    x = torch.randn(20, 4)
    before = [p.detach().clone() for p in second.parameters()]
    for vae in (first, second, copy.deepcopy(first)):
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        for _ in range(3):
            svi.step(x)
    assert all(not torch.equal(a, b) for a, b in zip(before, second.parameters()))


def test_every_instance_has_a_key_of_its_own():
    vae = small()
    assert len({key(vae), key(copy.deepcopy(vae)), key(small())}) == 3
    assert key(vae) == key(vae)


def test_masked_entries_do_not_matter():
    vae, x = small(), torch.randn(5, 4)
    mask = torch.rand(5, 4) > 0.3
    values = []
    for hidden in (0.0, 1e30, float("nan")):
        filled = torch.where(mask, x, hidden)
        vae.zero_grad()
        torch.manual_seed(0)
        guide = poutine.trace(vae.guide).get_trace(filled, mask)
        model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(filled, mask)
        log_joint = model.log_prob_sum()
        log_joint.backward()
        values.append([log_joint.detach(), *(p.grad.clone() for p in vae.parameters())])
    assert all(torch.equal(a, b) for other in values[1:] for a, b in zip(values[0], other))
    assert torch.isfinite(values[2][0])
    site = model.nodes["x"]
    assert torch.equal(site["fn"].base_dist.log_prob(site["value"])[~mask], torch.zeros(int((~mask).sum())))


def test_plain_callables_have_no_parameters_and_modules_do():
    vae = pv.VAE(lambda x: dist.Normal(x[..., :2], 1.0).to_event(1), torch.nn.Identity(), lambda: None)
    assert list(vae.parameters()) == []
    assert len(list(small().parameters())) == 8
    with pytest.raises(pv.OptionError, match="decoder: got 3"):
        pv.VAE(lambda x: None, 3, lambda: None)


def test_a_vae_of_plain_callables_is_fitted_and_scored():
    """No schema, and a parameter of the program's own that lives in Pyro's store between calls."""
    x = np.random.RandomState(0).randn(200, 3).astype("float32") + 2

    def decoder(z):
        loc = pyro.param("loc", lambda: torch.zeros(3))
        return dist.Normal(loc + 0 * z[..., :1], 1.0).to_event(1)

    vae = pv.VAE(
        lambda x: dist.Normal(x[..., :2] * 0, 1.0).to_event(1),
        decoder,
        lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1),
    )
    pv.fit(vae, x, epochs=60, batch_size=50, lr=0.1, valid=0.0, progress=False)
    exact = dist.Normal(torch.as_tensor(x.mean(0)), 1.0).to_event(1).log_prob(torch.as_tensor(x))
    assert np.allclose(pv.score(vae, x, "iwae").values, exact, atol=0.05)
    assert "loc" not in pyro.get_param_store()


@pytest.mark.parametrize(
    ("part", "made", "message"),
    [
        ("decoder", lambda z: z, "site 'x': got a torch.Tensor from the decoder, expected a Pyro"),
        ("encoder", lambda x: torch.distributions.Normal(x[..., :2], 1.0), "site 'z': got a torch.dist.* the encoder"),
        (
            "prior",
            lambda: dist.Normal(torch.zeros(2), 1.0),
            r"site 'z': .* from the prior, .*; .to_event\(1\) declares",
        ),
    ],
)
def test_a_part_that_returns_something_else_is_named(part, made, message):
    parts = {
        "encoder": lambda x: dist.Normal(x[..., :2], 1.0).to_event(1),
        "decoder": lambda z: dist.Normal(z.repeat_interleave(2, -1), 1.0).to_event(1),
        "prior": lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1),
    }
    x = np.zeros((5, 4))
    pv.score(pv.VAE(**parts), x)
    with pytest.raises(pv.ProgramError, match=message):
        pv.score(pv.VAE(**parts | {part: made}), x)


@pytest.mark.parametrize("handler", [poutine.scale(scale=0.5), poutine.mask(mask=torch.tensor(True))])
def test_weights_of_a_parts_own_sites_are_refused(handler):
    """A fit would have them, scores would not."""

    def decoder(z):
        with handler:
            shift = pyro.sample("shift", dist.Normal(torch.zeros(z.shape[:-1]), 1.0))
        return dist.Normal(z + shift[..., None], 1.0).to_event(1)

    def encoder(x):
        pyro.sample("shift", dist.Normal(x[..., 0], 1.0))
        return dist.Normal(x, 1.0).to_event(1)

    vae = pv.VAE(encoder, decoder, lambda: dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pytest.raises(pv.ProgramError, match=r"site 'shift': got it under a (scale of 0.5|mask)"):
        pv.score(vae, torch.randn(5, 3))
