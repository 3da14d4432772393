import numpy as np
import pandas as pd
import pytest
import torch

import ppl_vae as pv

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(200, 2) @ RANDOM.randn(2, 4) * [1, 10, 100, 1000] + [0, 1, 2, 3]


@pytest.fixture(scope="module")
def vae():
    vae = pv.build(X, latent=2, hidden=(16,))
    pv.fit(vae, X, epochs=20, lr=1e-2, progress=False)
    return vae


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, lambda x: pd.DataFrame(x, columns=list("abcd"))])
def test_rows_come_back_as_the_datas_own_type_and_units(kind):
    data = kind(X)
    vae = pv.build(data, latent=2, hidden=(16,))
    pv.fit(vae, data, epochs=2, progress=False)
    for rows, n in ((pv.generate(vae, 7).x, 7), (pv.reconstruct(vae, data), 200), (pv.reconstruct(vae, data, 3), 200)):
        assert type(rows) is type(data) and rows.shape == (n, 4)
    assert pv.score(vae, pv.generate(vae, 7)).values.shape == (7,)  # accepted wherever data is
    if isinstance(data, pd.DataFrame):
        assert list(pv.generate(vae, 2).x.columns) == list("abcd")


def test_a_reconstruction_keeps_the_index_of_its_frame():
    frame = pd.DataFrame(X, columns=list("abcd"), index=[f"row {i}" for i in range(200)])
    vae = pv.build(frame, latent=2)
    some = frame.sample(50, random_state=0)
    assert pv.reconstruct(vae, some).index.equals(some.index)
    assert np.isfinite((some - pv.reconstruct(vae, some)).to_numpy()).all()


def test_images_keep_their_shape():
    images = RANDOM.rand(30, 5, 4)
    vae = pv.build(images, latent=2, likelihood="continuous_bernoulli")
    assert pv.generate(vae, 3).x.shape == (3, 5, 4)
    assert pv.reconstruct(vae, images[:2]).shape == (2, 5, 4)


def test_generate_is_the_model(vae):
    """Mean and spread of x given its z, standardised, over 4 x 5000 values: 5 standard errors."""
    drawn = pv.generate(vae, 5000, seed=2)
    with torch.no_grad():
        given = vae.decoder(torch.as_tensor(drawn.z))
        x = vae.batch(drawn.x).x
    e = ((x - given.mean) / given.stddev).numpy()
    assert abs(e.mean()) < 5 / np.sqrt(20000) and abs(e.std() - 1) < 5 / np.sqrt(40000)
    assert abs(drawn.z.mean()) < 5 / 100 and abs(drawn.z.std() - 1) < 5 / np.sqrt(20000)
    assert np.array_equal(drawn.x, pv.generate(vae, 5000, seed=2).x)
    assert not np.array_equal(drawn.x, pv.generate(vae, 5000, seed=3).x)


def test_encode_and_reconstruct_are_means(vae):
    with torch.no_grad():
        q = vae.encoder(vae.batch(X).x)
    assert np.array_equal(pv.encode(vae, X), q.mean.numpy())
    assert np.allclose(pv.reconstruct(vae, X), pv.decode(vae, pv.encode(vae, X)))
    drawn = pv.reconstruct(vae, X, num_draws=2000)
    with torch.no_grad():
        many = vae.decoder(q.sample((2000,))).mean.mean(0)
    assert np.allclose((drawn - X.mean(0)) / X.std(0), many.numpy(), atol=0.05)


def test_interpolation_and_traversal_decode_straight_lines(vae):
    path = pv.interpolate(vae, X[:1], X[1:2], steps=5)
    ends = pv.encode(vae, X[:2])
    assert np.allclose(path[[0, -1]], pv.decode(vae, ends)) and len(path) == 5
    assert np.allclose(path[2], pv.decode(vae, ends.mean(0, keepdims=True))[0], rtol=1e-4)
    moved = pv.traverse(vae, X[:1], 1, values=[-1, 0, 2])
    codes = np.repeat(ends[:1], 3, 0)
    codes[:, 1] = [-1, 0, 2]
    assert np.allclose(moved, pv.decode(vae, codes))


def test_the_manifold_runs_through_the_quantiles_of_the_prior(vae):
    grid = pv.manifold(vae, side=3)
    from scipy.stats import norm

    q = norm.ppf([1 / 6, 1 / 2, 5 / 6])
    codes = [[a, -b] for b in q for a in q]  # the first dimension to the right, the second upwards
    assert np.allclose(grid, pv.decode(vae, codes), rtol=1e-4)


def test_bad_input(vae):
    with pytest.raises(pv.OptionError, match="n: got 0"):
        pv.generate(vae, 0)
    with pytest.raises(pv.OptionError, match=r"\[2, 1\] rows"):
        pv.interpolate(vae, X[:2], X[:1])
    with pytest.raises(pv.OptionError, match="dimension 2"):
        pv.traverse(vae, X[:1], 2)
    with pytest.raises(pv.OptionError, match="latent=2"):
        pv.manifold(pv.build(X, latent=3))
    with pytest.raises(pv.OptionError, match=r"z of shape \(4, 3\)"):
        pv.decode(vae, np.zeros((4, 3)))
    with pytest.raises(pv.OptionError, match="improper prior"):
        pv.generate(pv.build(X, posterior="delta", prior="flat", scale=1.0), 3)
