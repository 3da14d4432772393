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
    assert draw(dist.BetaBinomial(2.0, 1.0, 3), lambda: u) is None


@pytest.mark.parametrize(
    ("family", "cdf"),
    [
        (dist.Laplace(torch.ones(()), 2.0), stats.laplace(1, 2).cdf),
        (dist.Cauchy(torch.zeros(()), 1.0), stats.cauchy.cdf),
        (dist.Uniform(-1.0, torch.tensor(3.0)), stats.uniform(-1, 4).cdf),
        (dist.LogNormal(torch.zeros(()), 0.5), stats.lognorm(0.5).cdf),
        (dist.Gumbel(torch.zeros(()), 1.0), stats.gumbel_r.cdf),
        (dist.Exponential(torch.tensor(2.0)), stats.expon(0, 0.5).cdf),
    ],
)
def test_families_with_an_inverse_cdf_or_transforms_need_no_rule(family, cdf):
    u = uniforms(row_keys(X, 0), 50, 1)[..., 0]
    drawn = draw(family.expand(u.shape), lambda: u)
    assert drawn.dtype == torch.float32
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
            return pyro.sample("wins", dist.BetaBinomial(torch.ones(3), torch.ones(3), 4))

    with pytest.raises(ProgramError, match="site 'wins': BetaBinomial"), Keyed(torch.arange(3)):
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


def globals_of(keys, draws=None, **options):
    """Sites that no row owns: a vector, and one for each of 3 groups."""

    def program():
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("groups", 3, dim=-1):
            return w, pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    with Keyed(keys, **options):
        return program() if draws is None else pyro.plate("draws", draws, dim=-2)(program)()


def test_global_sites_keep_their_noise_whatever_the_rows_if_they_have_a_key():
    shared = torch.tensor([5])
    w, b = globals_of(torch.arange(4), shared=shared)
    assert w.shape == (2,) and b.shape == (3, 2) and len({*w.tolist(), *b.flatten().tolist()}) == 8
    for one, other in zip(globals_of(torch.arange(9, 11), shared=shared), (w, b)):
        assert torch.equal(one, other)
    assert not torch.equal(globals_of(torch.arange(4), shared=shared + 1)[0], w)
    assert not torch.equal(globals_of(torch.arange(4))[0], globals_of(torch.arange(9, 11))[0])


@pytest.mark.parametrize("shared", [None, torch.tensor([5])])
def test_a_draw_of_a_global_site_is_the_same_whatever_the_number_of_draws(shared):
    keys = torch.arange(4)
    w, b = globals_of(keys, 6, shared=shared)
    assert w.shape == (6, 1, 2) and b.shape == (6, 3, 2)
    assert len(b.unique()) == 36 and len(w.unique()) == 12
    later = globals_of(keys, 2, shared=shared, first=4)
    assert torch.equal(later[0], w[4:]) and torch.equal(later[1], b[4:])
    alone = globals_of(keys, shared=shared)
    assert torch.equal(alone[0], w[0, 0]) and torch.equal(alone[1], b[0])


def test_a_program_run_again_goes_on_with_the_next_draws():
    def program():
        with pyro.plate("data", 3, dim=-1):
            return pyro.sample("t", dist.StudentT(torch.full((3,), 4.0)))

    with Keyed(torch.arange(3)):
        together = pyro.plate("draws", 5, dim=-2)(program)()
    with Keyed(torch.arange(3)):
        one_by_one = torch.stack([program() for _ in range(5)])
    assert torch.equal(together, one_by_one) and len(together.unique()) == 15


def test_the_values_of_an_enumerated_site_have_noise_of_their_own_in_every_draw():
    """Site z given each of 4 classes, in a dimension left of the draws: no two numbers of all draws are equal."""

    def program():
        with pyro.plate("data", 3, dim=-1):
            return pyro.sample("z", dist.Normal(torch.zeros(4, 1, 3), 1.0))

    def drawn(draws, first):
        with Keyed(torch.arange(3), first=first):
            return pyro.plate("draws", draws, dim=-2)(program)()

    z = drawn(6, 0)
    assert z.shape == (4, 6, 3) and len(z.unique()) == 72
    assert torch.equal(drawn(2, 4), z[:, 4:])
