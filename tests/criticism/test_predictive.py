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
    flat = images[:2].reshape(2, 20)
    for rows in (flat, torch.as_tensor(flat)):  # in the shape of what was given
        assert pv.reconstruct(vae, rows).shape == pv.reconstruct(vae, rows, num_draws=2).shape == (2, 20)
    assert np.array_equal(pv.reconstruct(vae, flat), pv.reconstruct(vae, images[:2]).reshape(2, 20))


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


# ---- models that are given columns

N = 400
TIME, SEX = RANDOM.uniform(-20, 20, N), RANDOM.choice(["f", "m"], N)
TABLE = pd.DataFrame(
    {"a": 2.0 * (SEX == "m") + 0.1 * TIME + 0.3 * RANDOM.randn(N), "b": RANDOM.randn(N), "time": TIME, "sex": SEX}
)


@pytest.fixture(scope="module")
def conditional():
    """x|z,c with a linear decoder, so that what a covariate adds can be read off its weights."""
    vae = pv.build(TABLE, covariates=["time", "sex"], latent=1, hidden=(), scale="feature")
    pv.fit(vae, TABLE, epochs=120, lr=0.05, batch_size=100, progress=False)
    return vae


def test_prediction_at_another_covariate_moves_x_by_what_the_data_say(conditional):
    at = pv.predict(conditional, TABLE, at={"sex": "m"}), pv.predict(conditional, TABLE, at={"sex": "f"})
    assert at[0].index.equals(TABLE.index) and list(at[0].columns) == ["a", "b"]
    assert np.allclose(at[0].a - at[1].a, 2.0, atol=0.3) and np.allclose(at[0].b - at[1].b, 0.0, atol=0.3)
    later = pv.predict(conditional, TABLE, at={"time": TABLE.time + 10})
    assert np.allclose(later.a - pv.reconstruct(conditional, TABLE).a, 1.0, atol=0.2)
    same = pv.predict(conditional, TABLE, at={"time": TABLE.time.to_numpy()})
    pd.testing.assert_frame_equal(same, pv.reconstruct(conditional, TABLE))


def test_prediction_keeps_z_and_decodes_at_the_new_covariate(conditional):
    found = pv.predict(conditional, TABLE[:5], at={"time": 10.0})
    given = TABLE[:5].assign(time=10.0)
    assert np.allclose(found, pv.decode(conditional, pv.encode(conditional, TABLE[:5]), given))
    with torch.no_grad():
        z, c = torch.as_tensor(pv.encode(conditional, TABLE[:5])), conditional.batch(given).c
        by_hand = conditional.schema.decode(conditional.decoder(z, c=c).mean)
    assert np.allclose(found, by_hand)


def test_generated_rows_follow_their_covariates_and_carry_them(conditional):
    """Means of 2000 rows of spread 0.4 within 5 standard errors (1e-6): 0.06; of the fit: 0.2."""
    given = pd.DataFrame({"sex": ["m", "f"] * 1000, "time": 0.0, "unasked": 1})
    drawn = pv.generate(conditional, 2000, given=given)
    assert list(drawn.x.columns) == ["a", "b", "time", "sex"] and drawn.x.sex.tolist() == given.sex.tolist()
    means = drawn.x.groupby("sex").a.mean()
    assert means["m"] == pytest.approx(2.0, abs=0.3) and means["f"] == pytest.approx(0.0, abs=0.3)
    assert np.isfinite(pv.score(conditional, drawn).values).all()  # accepted wherever data is
    pd.testing.assert_frame_equal(drawn.x, pv.generate(conditional, 2000, given=given).x)


def test_paths_through_the_latent_space_take_what_the_model_is_given(conditional):
    rows = pd.concat([TABLE[:1]] * 4)
    with pytest.raises(pv.OptionError, match=r"given: got nothing, expected 4 rows with the columns \['time', 'sex'\]"):
        pv.interpolate(conditional, TABLE[:1], TABLE[1:2], steps=4)
    path = pv.interpolate(conditional, TABLE[:1], TABLE[1:2], steps=4, given=rows)
    assert np.allclose(path.iloc[0], pv.reconstruct(conditional, TABLE[:1]).iloc[0])
    moved = pv.traverse(conditional, TABLE[:1], 0, values=[-1, 0, 1, 2], given=rows)
    assert np.allclose(moved, pv.decode(conditional, [[-1], [0], [1], [2]], rows))
    plane = pv.build(TABLE, covariates=["time", "sex"], latent=2)
    assert pv.manifold(plane, 2, given=rows).shape == (4, 2)
    with pytest.raises(pv.OptionError, match="given: got nothing, expected 4 rows"):
        pv.manifold(plane, 2)


def test_groups_are_those_of_the_rows_and_an_unseen_one_is_of_the_population():
    """Effects of two groups that the guide holds 6 apart: means of 500 rows each, of spread 1, within 5 standard errors."""
    table = pd.DataFrame({"x": RANDOM.randn(20), "site": ["a", "b"] * 10})
    vae = pv.build(table, prior="hierarchical", group="site", latent=1, hidden=(), scale=0.1, standardize="none")
    with torch.no_grad():
        vae.decoder.net[0].weight.fill_(1.0)
        vae.decoder.net[0].bias.zero_()
    given = pd.DataFrame({"site": ["a", "b"] * 500})
    guide = vae.encoder.shared
    with torch.no_grad():
        guide.loc["offsets"].copy_(torch.tensor([[-3.0], [3.0]]))  # location 0 and spread exp(0)
        for raw in guide.raw.values():
            raw.fill_(-20.0)
    drawn = pv.generate(vae, 1000, given=given).x
    assert drawn.site.tolist() == given.site.tolist()
    means = drawn.groupby("site").x.mean()
    assert abs(means["a"] + 3) < 5 / 500**0.5 and abs(means["b"] - 3) < 5 / 500**0.5
    for unseen in (given.assign(site="elsewhere"), given.assign(site=None), given.drop(columns="site"), None):
        x = pv.generate(vae, 1000, given=unseen).x.x
        assert abs(x.mean()) < 5 * (2 / 1000) ** 0.5 and x.var() == pytest.approx(2.01, rel=5 * (2 / 1000) ** 0.5)


def test_classes_are_the_rows_own_or_the_most_probable():
    label = np.where(RANDOM.rand(N) < 0.5, "low", "high").astype(object)
    table = pd.DataFrame({"x": np.where(label == "low", -3.0, 3.0) + 0.3 * RANDOM.randn(N), "y": RANDOM.randn(N)})
    table["kind"] = np.where(RANDOM.rand(N) < 0.5, label, None)
    vae = pv.build(table, label="kind", latent=1, hidden=(8,), scale="feature")
    pv.fit(vae, table, epochs=60, lr=0.03, batch_size=100, progress=False)
    found = pv.classify(vae, table)
    batch = vae.batch(table)
    with torch.no_grad():
        by_hand = vae.classes.net(vae.encoder.features(batch.x)).softmax(-1)
    assert list(found.columns) == ["high", "low"] and np.allclose(found, by_hand) and np.allclose(found.sum(axis=1), 1)
    pd.testing.assert_frame_equal(found, pv.classify(vae, table.drop(columns="kind")))
    rows = pv.reconstruct(vae, table)
    assert list(rows.columns) == ["x", "y"] and np.all((rows.x < 0) == (label == "low"))
    z = np.zeros((2, 1))
    assert np.all(np.sign(pv.decode(vae, z, pd.DataFrame({"kind": ["low", "high"]})).x) == [-1, 1])
    likely = "low" if vae.classes.logits.argmax() == 1 else "high"
    assert pv.decode(vae, z).equals(pv.decode(vae, z, pd.DataFrame({"kind": [likely, None]})))
    with pytest.raises(pv.OptionError, match="classify: got a model without classes"):
        pv.classify(pv.build(X, latent=2), X)


def test_a_posterior_without_a_mean_is_averaged_over_draws():
    """Of 2000 draws, against 4 x 50,000 of the guide itself: within 5 standard errors of both."""
    vae = pv.build(X, latent=2, hidden=(8,), posterior="iaf", flow_hidden=(8,))
    with torch.no_grad():
        for parameter in vae.encoder.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        q = vae.encoder(vae.batch(X[:4]).x)
        with pytest.raises(NotImplementedError):
            q.mean  # noqa: B018
        many = q.sample((50_000,))
    error = (many.std(0) * (1 / 2000 + 1 / 50_000) ** 0.5).numpy()
    found = pv.encode(vae, X[:4], num_draws=2000)
    assert np.all(np.abs(found - many.mean(0).numpy()) < 5 * error)
    assert np.array_equal(found, pv.encode(vae, X[:4], num_draws=2000))
    assert np.allclose(found[2:], pv.encode(vae, X[2:4], num_draws=2000), rtol=1e-5)


def test_bad_columns_are_named(conditional):
    z = np.zeros((3, 1))
    with pytest.raises(pv.OptionError, match="given: got nothing, expected 3 rows"):
        pv.generate(conditional, 3)
    with pytest.raises(pv.OptionError, match="given: got 2 rows, expected 3"):
        pv.decode(conditional, z, TABLE[:2])
    for without in (["time"], ["time", "sex"]):
        with pytest.raises(pv.OptionError, match=r"given: got the columns .*, expected also .*'time'"):
            pv.decode(conditional, z, TABLE[:3].drop(columns=without))
    with pytest.raises(pv.DataError, match="column 'sex': got 'x'"):
        pv.predict(conditional, TABLE, at={"sex": "x"})
    with pytest.raises(pv.OptionError, match=r"at: got \['height'\], expected covariates among \['time', 'sex'\]"):
        pv.predict(conditional, TABLE, at={"height": 1.0})
    with pytest.raises(pv.OptionError, match="without covariates"):
        pv.predict(pv.build(X, latent=2), X, at={"time": 1.0})


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


def test_rows_of_a_class_that_is_asked_for():
    """Classes 6 apart; those not asked for are drawn: 100 of a fair coin, both seen but at 2e-30."""
    table = pd.DataFrame({"x": np.r_[np.full(20, -3.0), np.full(20, 3.0)], "kind": ["low"] * 20 + ["high"] * 20})
    vae = pv.build(table, label="kind", latent=1, hidden=(), scale=0.1, standardize="none")
    with torch.no_grad():
        vae.decoder.net[0].weight.copy_(torch.tensor([[0.0, 3.0, -3.0]]))  # of z, high, low
        vae.decoder.net[0].bias.zero_()
    asked = pd.DataFrame({"kind": ["high", "low", None, "low"] * 25})
    drawn = pv.generate(vae, 100, given=asked).x
    known = asked.kind.notna()
    assert drawn.kind[known].tolist() == asked.kind[known].tolist() and set(drawn.kind) == {"high", "low"}
    assert ((drawn.x > 0) == (drawn.kind == "high")).all()
    assert set(pv.generate(vae, 100).x.kind) == {"high", "low"}
    with pytest.raises(pv.OptionError, match="given no columns"):
        pv.generate(pv.build(X), 3, given=asked)


def test_predict_wants_one_value_or_one_a_row():
    table = pd.DataFrame({"a": [0.1, 0.2, 0.9, 1.0], "age": [20.0, 30.0, 40.0, 50.0]})
    vae = pv.build(table, covariates="age", latent=1)
    with pytest.raises(pv.OptionError, match="at: got 3 values of 'age', expected one, or 4"):
        pv.predict(vae, table, at={"age": [1.0, 2.0, 3.0]})
