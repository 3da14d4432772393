import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from ppl_vae.errors import ProgramError
from ppl_vae.infer.noise import Keyed, draw, mix, row_keys, step_keys, uniforms

X = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))


def test_mix_is_splitmix64():
    """The finaliser in exact integers, as published."""

    def published(h):
        h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        h = (h ^ (h >> 27)) * 0x94D049BB133111EB % 2**64
        return h ^ (h >> 31)

    h = torch.tensor([0, 1, -1, 2**62, -(2**63), 123456789])
    expected = [published(int(v) % 2**64) for v in h]
    assert [int(v) % 2**64 for v in mix(h)] == expected


def test_a_rows_noise_is_its_own_wherever_it_stands():
    noise, order = uniforms(row_keys(X, 3), 4, 2), torch.randperm(400)
    assert torch.equal(uniforms(row_keys(X[order], 3), 4, 2), noise[:, order])
    assert torch.equal(uniforms(row_keys(X[7:8], 3), 4, 2), noise[:, 7:8])
    assert torch.equal(uniforms(row_keys(X, 3), 2, 2, first=2), noise[2:])
    negative_zero = torch.tensor([[-0.0, 1.0]])
    assert torch.equal(row_keys(negative_zero, 0), row_keys(negative_zero.abs(), 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_uniform_and_independent(dtype):
    """Four tests at 1e-4 each; the one over all pairs of rows bounds the largest of 79,800 correlations at 6 deviations."""
    u = uniforms(row_keys(X.to(dtype), 3), 250, 2)
    assert 0 < u.min() and u.max() < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-4
    e = torch.special.ndtri(u).permute(1, 0, 2).reshape(400, -1)
    between_rows = np.corrcoef(e.numpy())[np.triu_indices(400, 1)] * np.sqrt(500)
    assert abs(between_rows).max() < 6
    assert abs(between_rows.std() - 1) < 0.02
    other_seed = torch.special.ndtri(uniforms(row_keys(X.to(dtype), 4), 250, 2)).permute(1, 0, 2).reshape(400, -1)
    assert abs(np.corrcoef(e.flatten(), other_seed.flatten())[0, 1]) * np.sqrt(200_000) < 5
    by_dimension = e.reshape(400, 250, 2)
    assert abs(np.corrcoef(by_dimension[..., 0].flatten(), by_dimension[..., 1].flatten())[0, 1]) * np.sqrt(1e5) < 5


def test_rows_that_differ_in_one_bit_or_by_a_permutation_differ():
    x = torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0000002], [0.0, 0.0], [1.0, 2.0]])
    keys = row_keys(x, 0)
    assert len(set(keys.tolist())) == 4 and keys[0] == keys[4]


@pytest.mark.parametrize("seed", [0, -1, 2**63, 10**30])
def test_any_whole_number_is_a_seed(seed):
    assert len(set(row_keys(X, seed).tolist())) == 400
    assert len(set(step_keys(torch.arange(50), seed, 7).tolist())) == 50


def test_training_keys_differ_by_step_row_and_seed():
    keys = [step_keys(torch.arange(1000), seed, step) for seed in range(5) for step in range(20)]
    assert len(torch.cat(keys).unique()) == 100_000


def test_draws_of_each_rule_follow_their_family():
    u = uniforms(row_keys(X, 0), 100, 1)[..., 0]
    normal = draw(dist.Normal(2.0 * torch.ones(100, 400), 3.0), lambda: u)
    assert stats.kstest(normal.flatten().numpy(), stats.norm(2, 3).cdf).pvalue > 1e-4
    assert torch.equal(draw(dist.Delta(X, event_dim=1), lambda: u), X)
    assert draw(dist.Gamma(2.0, 1.0), lambda: u) is None


@pytest.mark.parametrize(
    ("family", "cdf"),
    [
        (dist.Laplace(torch.ones(()), 2.0), stats.laplace(1, 2).cdf),
        (dist.Cauchy(torch.zeros(()), 1.0), stats.cauchy.cdf),
        (dist.Uniform(-1.0, torch.tensor(3.0)), stats.uniform(-1, 4).cdf),
        (dist.LogNormal(torch.zeros(()), 0.5), stats.lognorm(0.5).cdf),
        (dist.Gumbel(torch.zeros(()), 1.0), stats.gumbel_r.cdf),
    ],
)
def test_families_with_an_inverse_cdf_or_transforms_need_no_rule(family, cdf):
    u = uniforms(row_keys(X, 0), 50, 1)[..., 0]
    drawn = draw(family.expand(u.shape), lambda: u)
    assert stats.kstest(drawn.flatten().double().numpy(), cdf).pvalue > 1e-4


def test_a_multivariate_normal_has_its_covariance():
    """20,000 draws: each entry within 5 standard errors."""
    tril = torch.tensor([[1.0, 0.0], [0.8, 0.5]])
    u = uniforms(row_keys(X, 0), 50, 2)
    drawn = draw(dist.MultivariateNormal(torch.tensor([1.0, 2.0]), scale_tril=tril).expand(u.shape[:2]), lambda: u)
    got, exact = np.cov(drawn.reshape(-1, 2).T), (tril @ tril.T).numpy()
    error = np.sqrt((np.outer(np.diag(exact), np.diag(exact)) + exact**2) / 20000)
    assert np.all(np.abs(got - exact) < 5 * error)


def test_a_site_without_a_rule_is_refused_by_name_or_left_to_torch():
    def program():
        with pyro.plate("data", 3):
            return pyro.sample("angle", dist.VonMises(torch.zeros(3), torch.ones(3)))

    with pytest.raises(ProgramError, match="site 'angle': VonMises"), Keyed(torch.arange(3)):
        program()
    with Keyed(torch.arange(3), strict=False):
        assert program().shape == (3,)


def test_sites_and_global_sites_have_noise_of_their_own():
    def program():
        w = pyro.sample("w", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", 3):
            a = pyro.sample("a", dist.Normal(torch.zeros(3), 1.0))
            b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0))
        return w, a, b

    with Keyed(torch.arange(3)):
        w, a, b = program()
    assert len({float(w), *a.tolist(), *b.tolist()}) == 7
    state = torch.get_rng_state()
    with Keyed(torch.arange(3)):
        again = program()
    assert all(map(torch.equal, again, (w, a, b)))
    assert torch.equal(state, torch.get_rng_state())
