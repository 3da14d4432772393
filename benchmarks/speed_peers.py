"""Who runs in `speed.py`: one VAE, trained and scored by ppl_vae, by hand and by others.

All have tanh layers features-hidden-2 latent and latent-hidden-features, Bernoulli logits, a scale of softplus + 0.001,
one draw of log p(x|z) + log p(z) - log q(z|x) a row and step, Adam at 0.001, and a new order of the rows each epoch.
Others are imported where they are used, so that one that is missing is no more than that.
"""

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

import ppl_vae as pv

LR, FLOOR = 1e-3, 1e-3


class Problem(NamedTuple):
    """Sizes: of the model, of a batch, of the data."""

    features: int
    hidden: int
    latent: int
    batch: int
    rows: int

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return self.rows // self.batch

    def data(self) -> np.ndarray:
        """Rows of 0 and 1 (n, d), float32, from a logistic model of five dimensions."""
        random = np.random.default_rng(0)
        loadings = random.standard_normal((5, self.features), dtype=np.float32)
        logits = random.standard_normal((self.rows, 5), dtype=np.float32) @ loadings - 1
        logits -= random.logistic(size=self.features).astype(np.float32)
        return (random.random(logits.shape, dtype=np.float32) < 1 / (1 + np.exp(-logits))).astype(np.float32)

    def vae(self, x: Any, seed: int = 0) -> pv.VAE:
        """Of these sizes."""
        return pv.build(x, latent=self.latent, hidden=(self.hidden,), likelihood="bernoulli", seed=seed)


class Contestant(NamedTuple):
    """What trains.

    Attributes:
        weights: numbers that are trained.
        run: so many more epochs, to the seconds of each and the mean bound of the last one's rows as they were met.
    """

    weights: int
    run: Callable[[int], tuple[list[float], float]]


def by_epoch(weights: int, epoch: Callable[[], float]) -> Contestant:
    """From a function that trains for one epoch and gives its bound."""

    def run(epochs: int) -> tuple[list[float], float]:
        seconds = []
        for _ in range(epochs):
            start = time.perf_counter()
            bound = epoch()
            seconds.append(time.perf_counter() - start)
        return seconds, bound

    return Contestant(weights, run)


def count(module: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(p.numel() for p in module.parameters())


# ---- training steps


def ours(problem: Problem, x: np.ndarray, **options: Any) -> Contestant:
    """`pv.fit`: each run is a fit, which goes on from where the last one stood, with a new optimiser."""
    vae = problem.vae(x)
    fixed: dict[str, Any] = {"batch_size": problem.batch, "lr": LR, "schedule": "constant"}

    def run(epochs: int) -> tuple[list[float], float]:
        history = pv.fit(vae, x, epochs=epochs, valid=0.0, progress=False, **fixed, **options)
        return np.diff(history["seconds"], prepend=0.0).tolist(), float(history["bound"][-1])

    return Contestant(count(vae), run)


class Net(nn.Module):
    """Two nets, and the bound by hand."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        d, h, k = problem.features, problem.hidden, problem.latent
        self.encoder = nn.Sequential(nn.Linear(d, h), nn.Tanh(), nn.Linear(h, 2 * k))
        self.decoder = nn.Sequential(nn.Linear(k, h), nn.Tanh(), nn.Linear(h, d))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z|x)."""
        loc, raw = self.encoder(x).chunk(2, -1)
        return loc, softplus(raw) + FLOOR

    def forward(self, x: Tensor) -> Tensor:
        """Minus the bound, mean over rows."""
        loc, scale = self.encode(x)
        noise = torch.randn_like(loc)
        z = loc + scale * noise
        log_ratio = 0.5 * (noise.square() - z.square()).sum() + scale.log().sum()
        return (binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum") - log_ratio) / len(x)


def pytorch(
    problem: Problem, x: np.ndarray, compiled: bool = False, compiled_adam: bool = False, bf16: bool = False
) -> Contestant:
    """By hand."""
    torch.manual_seed(0)
    net, rows = Net(problem), torch.from_numpy(x)
    loss = torch.compile(net, dynamic=False) if compiled else net
    adam = torch.optim.Adam(net.parameters(), lr=LR, fused=not compiled_adam)
    step = torch.compile(adam.step) if compiled_adam else adam.step
    cast = partial(torch.autocast, "cpu", torch.bfloat16) if bf16 else nullcontext

    def epoch() -> float:
        total = 0.0
        for numbers in torch.randperm(len(rows)).split(problem.batch):
            with cast():
                value = loss(rows[numbers])
            value.backward()
            step()
            adam.zero_grad()
            total -= value.item()
        return total / problem.steps

    return by_epoch(count(net), epoch)


def programs(net: Net) -> tuple[Callable, Callable]:
    """Model and guide as in Pyro's VAE example."""

    def model(x: Tensor) -> None:
        pyro.module("decoder", net.decoder)
        with pyro.plate("data", len(x), dim=-1):
            size = (len(x), net.decoder[0].in_features)
            z = pyro.sample("z", dist.Normal(x.new_zeros(size), x.new_ones(size)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=net.decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", net.encoder)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(*net.encode(x)).to_event(1))

    return model, guide


def pyro_svi(problem: Problem, x: np.ndarray) -> Contestant:
    """Pyro's VAE example: SVI, Trace_ELBO, pyro.optim.Adam; without the validation of arguments, which it has on."""
    torch.manual_seed(0)
    pyro.clear_param_store()  # names are global, sizes differ
    net, rows = Net(problem), torch.from_numpy(x)
    svi = SVI(*programs(net), pyro.optim.Adam({"lr": LR}), loss=Trace_ELBO())

    def epoch() -> float:
        with pyro.validation_enabled(False):
            total = sum(svi.step(rows[numbers]) for numbers in torch.randperm(len(rows)).split(problem.batch))
        return -total / len(rows)

    return by_epoch(count(net), epoch)


def numpyro_svi(problem: Problem, x: np.ndarray, loop: bool) -> Contestant:
    """NumPyro: `jit` of one update at a time, or of an epoch in `fori_loop`, the data an argument, as in its VAE example."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as ndist
    from jax.example_libraries import stax
    from numpyro.infer import SVI, Trace_ELBO

    d, h, k, batch = problem.features, problem.hidden, problem.latent, problem.batch
    encoder = stax.serial(stax.Dense(h), stax.Tanh, stax.Dense(2 * k))
    decoder = stax.serial(stax.Dense(h), stax.Tanh, stax.Dense(d))

    def model(x: Any) -> None:
        decode = numpyro.module("decoder", decoder, (batch, k))
        with numpyro.plate("data", batch):
            z = numpyro.sample("z", ndist.Normal(jnp.zeros((batch, k)), 1.0).to_event(1))
            numpyro.sample("x", ndist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        loc, raw = jnp.split(numpyro.module("encoder", encoder, (batch, d))(x), 2, -1)
        with numpyro.plate("data", batch):
            numpyro.sample("z", ndist.Normal(loc, jax.nn.softplus(raw) + FLOOR).to_event(1))

    svi, rows = SVI(model, guide, numpyro.optim.Adam(LR), Trace_ELBO()), jnp.asarray(x)
    random = np.random.default_rng(0)
    state = svi.init(jax.random.PRNGKey(0), rows[:batch])

    @jax.jit
    def update(state: Any, rows: Any, numbers: Any) -> Any:
        return svi.update(state, rows[numbers])

    @jax.jit
    def in_loop(state: Any, rows: Any, order: Any) -> Any:
        def body(i: Any, carry: Any) -> Any:
            state, total = carry
            state, loss = svi.update(state, rows[jax.lax.dynamic_slice_in_dim(order, i * batch, batch)])
            return state, total + loss

        return jax.lax.fori_loop(0, problem.steps, body, (state, 0.0))

    def epoch() -> float:
        nonlocal state
        order = random.permutation(len(rows)).astype(np.int32)
        if loop:
            state, total = in_loop(state, rows, order)
            return -float(total) / len(rows)
        losses = []  # not waited for
        for numbers in order.reshape(-1, batch):
            state, loss = update(state, rows, numbers)
            losses.append(loss)
        return -float(np.sum(jax.device_get(losses))) / len(rows)

    return by_epoch(sum(v.size for v in jax.tree_util.tree_leaves(svi.get_params(state))), epoch)


STEPS: dict[str, Callable[[Problem, np.ndarray], Contestant]] = {
    "ppl_vae, compiled": partial(ours, compiled=True),
    "ppl_vae, compiled, bf16": partial(ours, compiled=True, precision="bf16"),
    "ppl_vae, traced": partial(ours, compiled="traced"),
    "ppl_vae, eager": partial(ours, compiled=False),
    "Pyro, SVI": pyro_svi,
    "PyTorch, eager": pytorch,
    "PyTorch, eager, bf16": partial(pytorch, bf16=True),
    "PyTorch, torch.compile": partial(pytorch, compiled=True),
    "PyTorch, torch.compile, Adam too": partial(pytorch, compiled=True, compiled_adam=True),
    "NumPyro, jit": partial(numpyro_svi, loop=False),
    "NumPyro, fori_loop": partial(numpyro_svi, loop=True),
}


# ---- whole fits: seconds, and those of compilation


def our_fit(problem: Problem, x: np.ndarray, epochs: int, compiled: bool) -> tuple[float, float]:
    """`build` and `fit`."""
    start = time.perf_counter()
    fixed: dict[str, Any] = {"batch_size": problem.batch, "lr": LR, "valid": 0.0, "progress": False}
    history = pv.fit(problem.vae(x), x, epochs=epochs, compiled=compiled, **fixed)
    return time.perf_counter() - start, history.compile_seconds or 0.0


def pyod_fit(problem: Problem, x: np.ndarray, epochs: int) -> tuple[float, float]:
    """PyOD's, which scores its training rows at the end, once by their squared error; its likelihood is that error."""
    from pyod.models.vae import VAE

    own = {"preprocessing": False, "verbose": 0, "optimizer_params": {}, "dropout_rate": 0.0, "beta": 1.0}
    nets = {"encoder_neuron_list": [problem.hidden], "decoder_neuron_list": [problem.hidden]}
    fixed: dict[str, Any] = {"epoch_num": epochs, "batch_size": problem.batch, "lr": LR, "latent_dim": problem.latent}
    start = time.perf_counter()
    VAE(hidden_activation_name="tanh", **fixed, **nets, **own).fit(x)
    return time.perf_counter() - start, 0.0


def pythae_fit(problem: Problem, x: np.ndarray, epochs: int) -> tuple[float, float]:
    """pythae's trainer, which keeps a copy of the best epoch's model."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()), TemporaryDirectory() as folder:
        from pythae.data.datasets import BaseDataset
        from pythae.models import VAE, VAEConfig
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseEncoder
        from pythae.trainers import BaseTrainer, BaseTrainerConfig

        logging.getLogger("pythae").setLevel(logging.ERROR)
        net = Net(problem)

        class Encoder(BaseEncoder):
            def __init__(self) -> None:
                super().__init__()
                self.net = net.encoder

            def forward(self, x: Tensor) -> Any:
                loc, log_variance = self.net(x).chunk(2, -1)
                return ModelOutput(embedding=loc, log_covariance=log_variance)

        class Decoder(BaseDecoder):
            def __init__(self) -> None:
                super().__init__()
                self.net = net.decoder

            def forward(self, z: Tensor) -> Any:
                return ModelOutput(reconstruction=self.net(z).sigmoid())

        start = time.perf_counter()
        sizes: dict[str, Any] = {"input_dim": (problem.features,), "latent_dim": problem.latent}
        vae = VAE(VAEConfig(**sizes, reconstruction_loss="bce"), Encoder(), Decoder())
        options: dict[str, Any] = {"per_device_train_batch_size": problem.batch, "learning_rate": LR, "no_cuda": True}
        data = BaseDataset(torch.from_numpy(x), torch.ones(len(x)))
        BaseTrainer(
            vae, data, training_config=BaseTrainerConfig(output_dir=folder, num_epochs=epochs, **options)
        ).train()
        return time.perf_counter() - start, 0.0


FITS: dict[str, Callable[[Problem, np.ndarray, int], tuple[float, float]]] = {
    "ppl_vae, eager": partial(our_fit, compiled=False),
    "ppl_vae, compiled": partial(our_fit, compiled=True),
    "PyOD": pyod_fit,
    "pythae": pythae_fit,
}


# ---- reconstruction probability of rows (n, d) by S draws, (n,)


def same_weights(vae: pv.VAE, problem: Problem) -> Net:
    """The nets by hand with the weights of ours."""
    net = Net(problem)
    with torch.no_grad():
        for mine, theirs in zip(net.parameters(), vae.parameters(), strict=True):
            mine.copy_(theirs)
        x = torch.rand(5, problem.features)
        for mine, theirs in zip(net.encode(x), (vae.encoder(x).mean, vae.encoder(x).stddev)):
            torch.testing.assert_close(mine, theirs)
    return net


@torch.no_grad()
def by_hand(net: Net, x: Tensor, draws: int, block: int) -> Tensor:
    """Some rows at a time."""
    scores = []
    for rows in x.split(block):
        loc, scale = net.encode(rows)
        logits = net.decoder(loc + scale * torch.randn(draws, *loc.shape))
        log_lik = -binary_cross_entropy_with_logits(logits, rows.expand_as(logits), reduction="none").sum(-1)
        scores.append(log_lik.logsumexp(0) - math.log(draws))
    return torch.cat(scores)


@torch.no_grad()
def by_predictive(net: Net, x: Tensor, draws: int) -> Tensor:
    """Pyro's `Predictive(parallel=True)`: all rows and draws at once, the likelihood's density at its vectorised trace."""
    pyro.clear_param_store()
    model, guide = programs(net)
    with pyro.validation_enabled(False):
        predictive = Predictive(model, guide=guide, num_samples=draws, parallel=True)
        site = predictive.get_vectorized_trace(x).nodes["x"]
        return site["fn"].log_prob(site["value"]).logsumexp(0) - math.log(draws)
