"""What importing and using the library leaves behind in a fresh process: nothing that anybody else could notice."""

import json
import subprocess
import sys
from pathlib import Path

STATE = '''
import gc, json, logging, os, random, signal, sys, threading, warnings

def state():
    """All that others may rely on, as text; of libraries that have been imported."""
    found = {
        "warnings": [str(f) for f in warnings.filters],
        "logging": {
            name: (logger.level, logger.handlers, logger.propagate, logger.disabled, logger.filters)
            for name, logger in {"root": logging.root, **logging.root.manager.loggerDict}.items()
            if isinstance(logger, logging.Logger) and (logger.level or logger.handlers or not logger.propagate)
        },
        "random": hash(random.getstate()),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": sys.path,
        "hooks": (sys.excepthook, sys.displayhook, sys.gettrace(), sys.getrecursionlimit(), gc.get_threshold()),
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)],
        "threads": [t.name for t in threading.enumerate() if t.name != "tqdm_monitor"],  # a daemon of any bar
    }
    if np := sys.modules.get("numpy"):
        state = np.random.get_state()
        found["numpy"] = (state[1].tolist(), state[2:], np.geterr(), np.get_printoptions())
    if torch := sys.modules.get("torch"):
        found["torch"] = {
            "random state": torch.get_rng_state().tolist(),
            "default dtype": torch.get_default_dtype(),
            "default device": torch.get_default_device(),
            "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
            "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
            "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.get_deterministic_debug_mode()),
            "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
            "matmul": (torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled),
            "validate": torch.distributions.Distribution._validate_args,
            "sharing": torch.multiprocessing.get_sharing_strategy(),
        }
    if pyro := sys.modules.get("pyro"):
        found["pyro"] = (pyro.settings.get(), sorted(pyro.get_param_store()), pyro.poutine.runtime._PYRO_STACK)
    if pandas := sys.modules.get("pandas"):
        found["pandas"] = [str(pandas.get_option(key)) for key in ("display.max_rows", "display.precision")]
    if matplotlib := sys.modules.get("matplotlib"):
        figures = sys.modules["matplotlib.pyplot"].get_fignums() if "matplotlib.pyplot" in sys.modules else []
        found["matplotlib"] = (sorted(map(str, matplotlib.rcParams.items())), figures)
    return {key: repr(value) for key, value in found.items()}

def changed(before):
    after = state()
    return {key: (before[key][-300:], after[key][-300:]) for key in before if after[key] != before[key]}
'''

IMPORTS = """
import arviz, h5netcdf, jsonargparse, matplotlib.pyplot, narwhals, numpy, pandas, polars, pyarrow.parquet, pyro, pyro.infer
import pyro.infer.mcmc, pyro.contrib.easyguide, safetensors.torch, scipy.stats, sklearn.ensemble, torch, torch.fx, tqdm.auto
import torch.fx.experimental.proxy_tensor, torch._dynamo, xarray, yaml, zuko  # which turns torch's checks off
torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # names a folder for torch's compiler
"""

EVERY_NAME = """
import ppl_vae as pv
for name in pv.__all__:
    getattr(pv, name)
"""

USE = """
import numpy as np, pandas as pd
x = np.arange(200.0).reshape(50, 4) % 7
table = pd.DataFrame(x, columns=list("abcd")).assign(kind=["u", "v"] * 25)
for data, options in ((x, {}), (table, {"likelihood": "infer"})):
    vae = pv.build(data, latent=2, hidden=(4,), **options)
    for compiled in (False, "traced"):
        pv.fit(vae, data, epochs=2, batch_size=15, compiled=compiled, progress=False)
        pv.score(vae, data, num_draws=4, compiled=compiled)
for call in (lambda: pv.fit(vae, x), lambda: pv.fit(vae, table, lr=1e30, optimizer="sgd", progress=False)):
    try:
        call()
    except pv.PplVaeError:
        pass
    else:
        raise AssertionError("not refused")
vae = pv.build(x, latent=2, hidden=(4,))
pv.fit(vae, x, epochs=2, progress=False)
pv.generate(vae, 3), pv.reconstruct(vae, x), pv.encode(vae, x), pv.log_evidence(vae, x[:5], "ais", num_draws=2, steps=3)
pv.posterior(vae, x[:3], "hmc", num_draws=5), pv.plots.training_curve(pv.fit(vae, x, epochs=2, progress=False))
pv.save(vae, "model"), pv.load("model"), pv.to_arviz(vae, x[:5], num_draws=4)
"""


def run(*parts: str, folder: Path) -> list[dict]:
    program = "\n".join((STATE, *parts))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


NOTE, SHOW = "before = state()", "print(json.dumps(changed(before)))"


def test_importing_the_package_changes_nothing(tmp_path: Path) -> None:
    assert run(NOTE, "import ppl_vae", SHOW, folder=tmp_path) == [{}]


def test_importing_and_using_every_public_name_changes_nothing(tmp_path: Path) -> None:
    """But for what other libraries do when they are imported."""
    imported, used = run(IMPORTS, NOTE, EVERY_NAME, SHOW, NOTE, USE, SHOW, folder=tmp_path)
    assert imported == {}
    assert used == {}
