"""ppl_vae: a variational autoencoder as two probabilistic programs.

The decoder is a Pyro model, the encoder a Pyro guide, trained by Pyro's SVI; rows are scored by reconstruction probability.

The house follows Box's loop, one folder a step: `data` (what comes in), `model` (what we believe), `infer` (how we fit it),
`criticism` (what we learn), `use` (how people reach it).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppl_vae import testing as testing
    from ppl_vae.criticism import plots as plots
    from ppl_vae.criticism.calibration import Calibration as Calibration
    from ppl_vae.criticism.calibration import calibrate as calibrate
    from ppl_vae.criticism.compare import Candidate as Candidate
    from ppl_vae.criticism.compare import compare as compare
    from ppl_vae.criticism.comparison import Comparison as Comparison
    from ppl_vae.criticism.diagnostics import Diagnosis as Diagnosis
    from ppl_vae.criticism.diagnostics import diagnose as diagnose
    from ppl_vae.criticism.explanation import Explanation as Explanation
    from ppl_vae.criticism.explanation import explain as explain
    from ppl_vae.criticism.gaps import gaps as gaps
    from ppl_vae.criticism.imputation import Imputed as Imputed
    from ppl_vae.criticism.imputation import impute as impute
    from ppl_vae.criticism.inference_data import to_arviz as to_arviz
    from ppl_vae.criticism.labelled import elpd as elpd
    from ppl_vae.criticism.labelled import loo as loo
    from ppl_vae.criticism.pit import pit as pit
    from ppl_vae.criticism.posterior_check import posterior_predictive as posterior_predictive
    from ppl_vae.criticism.predictive import Simulated as Simulated
    from ppl_vae.criticism.predictive import classify as classify
    from ppl_vae.criticism.predictive import decode as decode
    from ppl_vae.criticism.predictive import encode as encode
    from ppl_vae.criticism.predictive import generate as generate
    from ppl_vae.criticism.predictive import interpolate as interpolate
    from ppl_vae.criticism.predictive import manifold as manifold
    from ppl_vae.criticism.predictive import predict as predict
    from ppl_vae.criticism.predictive import reconstruct as reconstruct
    from ppl_vae.criticism.predictive import traverse as traverse
    from ppl_vae.criticism.prior_check import prior_predictive as prior_predictive
    from ppl_vae.criticism.sbc import sbc as sbc
    from ppl_vae.criticism.scores import Scores as Scores
    from ppl_vae.criticism.scores import score as score
    from ppl_vae.criticism.vsbc import vsbc as vsbc
    from ppl_vae.data import datasets as datasets
    from ppl_vae.data.datasets import Dataset as Dataset
    from ppl_vae.data.schema import Batch as Batch
    from ppl_vae.data.schema import Schema as Schema
    from ppl_vae.data.tables import read_csv as read_csv
    from ppl_vae.errors import DataError as DataError
    from ppl_vae.errors import MissingFileError as MissingFileError
    from ppl_vae.errors import ModelFileError as ModelFileError
    from ppl_vae.errors import NonFiniteError as NonFiniteError
    from ppl_vae.errors import OptionError as OptionError
    from ppl_vae.errors import PplVaeError as PplVaeError
    from ppl_vae.errors import ProgramError as ProgramError
    from ppl_vae.infer import callbacks as callbacks
    from ppl_vae.infer.draws import Draws as Draws
    from ppl_vae.infer.draws import draws as draws
    from ppl_vae.infer.ensemble import Ensemble as Ensemble
    from ppl_vae.infer.evidence import Evidence as Evidence
    from ppl_vae.infer.evidence import log_evidence as log_evidence
    from ppl_vae.infer.history import History as History
    from ppl_vae.infer.laplace import last_layer_laplace as last_layer_laplace
    from ppl_vae.infer.local import posterior as posterior
    from ppl_vae.infer.many import fit_many as fit_many
    from ppl_vae.infer.objectives import objectives as objectives
    from ppl_vae.infer.training import fit as fit
    from ppl_vae.model.autoencoder import Autoencoder as Autoencoder
    from ppl_vae.model.build import build as build
    from ppl_vae.model.build import likelihoods as likelihoods
    from ppl_vae.model.build import posteriors as posteriors
    from ppl_vae.model.build import priors as priors
    from ppl_vae.model.flows import Flow as Flow
    from ppl_vae.model.linear import PCA as PCA
    from ppl_vae.model.linear import PPCA as PPCA
    from ppl_vae.model.programs import Programs as Programs
    from ppl_vae.model.vae import VAE as VAE
    from ppl_vae.use.estimator import VAEDetector as VAEDetector
    from ppl_vae.use.report.page import report as report
    from ppl_vae.use.scale import Manifest as Manifest
    from ppl_vae.use.scale import impute_files as impute_files
    from ppl_vae.use.scale import score_files as score_files
    from ppl_vae.use.store import load as load
    from ppl_vae.use.store import save as save

__version__ = "0.1.0"

_HOMES = {
    "criticism.calibration": "Calibration calibrate",
    "criticism.compare": "Candidate compare",
    "criticism.comparison": "Comparison",
    "criticism.diagnostics": "Diagnosis diagnose",
    "criticism.explanation": "Explanation explain",
    "criticism.gaps": "gaps",
    "criticism.imputation": "Imputed impute",
    "criticism.inference_data": "to_arviz",
    "criticism.labelled": "elpd loo",
    "criticism.pit": "pit",
    "criticism.posterior_check": "posterior_predictive",
    "criticism.predictive": "Simulated classify decode encode generate interpolate manifold predict reconstruct traverse",
    "criticism.prior_check": "prior_predictive",
    "criticism.sbc": "sbc",
    "criticism.scores": "Scores score",
    "criticism.vsbc": "vsbc",
    "data.datasets": "Dataset",
    "data.schema": "Batch Schema",
    "data.tables": "read_csv",
    "errors": "DataError MissingFileError ModelFileError NonFiniteError OptionError PplVaeError ProgramError",
    "infer.draws": "Draws draws",
    "infer.ensemble": "Ensemble",
    "infer.evidence": "Evidence log_evidence",
    "infer.history": "History",
    "infer.laplace": "last_layer_laplace",
    "infer.local": "posterior",
    "infer.objectives": "objectives",
    "infer.many": "fit_many",
    "infer.training": "fit",
    "model.autoencoder": "Autoencoder",
    "model.build": "build likelihoods posteriors priors",
    "model.flows": "Flow",
    "model.linear": "PCA PPCA",
    "model.programs": "Programs",
    "model.vae": "VAE",
    "use.estimator": "VAEDetector",
    "use.report.page": "report",
    "use.scale": "Manifest impute_files score_files",
    "use.store": "load save",
}
_MODULES = {
    "callbacks": "infer.callbacks",
    "datasets": "data.datasets",
    "plots": "criticism.plots",
    "testing": "testing",
}
_PUBLIC = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = sorted([*_PUBLIC, *_MODULES])


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `import ppl_vae` stays fast."""
    if name in _MODULES:
        return import_module(f"ppl_vae.{_MODULES[name]}")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ppl_vae' has no attribute {name!r}")
    value = getattr(import_module(f"ppl_vae.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
