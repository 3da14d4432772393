"""Every choice by name and every default, once. No torch here: the command line reads this file and starts fast."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelOptions:
    """What `build` takes by name.

    Attributes:
        latent: number of latent dimensions k.
        hidden: widths of the hidden layers, as [128] or [256,64]; [] makes a linear net.
        likelihood: a name for all columns, as normal, student_t, bernoulli, poisson (see `ppl-vae parts`); or infer: each
            column by its type.
        prior: standard_normal | normal | mixture | vamp | flow | laplace | student_t | ... (see `ppl-vae parts`).
        posterior: mean_field | low_rank | full_rank | iaf | spline_flow | mixture | delta | ... (see `ppl-vae parts`).
        nets: mlp | cnn.
        activation: tanh | relu | silu | elu | softplus.
        scale: of the normal likelihood: row | feature | shared | a number (encoded units).
        scale_link: softplus | log_variance.
        scale_floor: smallest scale of the normal likelihood, in encoded units.
        standardize: feature | center | none (real columns only).
        nullable: true, or columns in which cells may be missing.
        covariates: columns that are given instead of modelled.
        group: column of groups, for prior hierarchical.
        label: column of classes, known on some rows.
        weights: of the decoder's net: point | normal (a prior and a posterior for each).
        seed: of the initial weights.
    """

    latent: int = 8
    hidden: tuple[int, ...] = (128,)
    likelihood: str = "normal"
    prior: str = "standard_normal"
    posterior: str = "mean_field"
    nets: str = "mlp"
    activation: str = "tanh"
    scale: str | float = "row"
    scale_link: str = "softplus"
    scale_floor: float = 1e-3
    standardize: str = "feature"
    nullable: bool | tuple[str, ...] = False
    covariates: tuple[str, ...] = ()
    group: str | None = None
    label: str | None = None
    weights: str = "point"
    seed: int = 0


@dataclass(frozen=True)
class FitOptions:
    """What `fit` takes by name.

    Attributes:
        objective: elbo | analytic_kl | sticking_the_landing | iwae | dreg | mean_iwae | renyi | reweighted_wake_sleep |
            wake_sleep | mcem | vimco | score_function | trace_graph | enumerate | relaxation | beta | cyclic |
            free_bits | mmd.
        particles: Monte Carlo draws a row and step (K for iwae and its kin).
        epochs: passes over the training rows.
        batch_size: rows a step.
        optimizer: adam | adamw | sgd | adagrad.
        lr: step size at the start.
        schedule: cosine (to zero at the last step) | constant.
        weight_decay: as the optimiser defines it.
        max_grad_norm: clip the gradient of the mean over rows to this norm; None: never.
        kl_warmup: epochs over which the weight of the KL term rises from 1/kl_warmup to 1.
        valid: share of the rows held out for validation.
        patience: epochs without a better validation bound before stopping; None: never.
        binarize: none | threshold | stochastic (drawn anew each step).
        compiled: true | traced (without a compiler) | false | auto (where it pays): steps as a graph.
        precision: float32 | bf16: of the products of nets, in training.
        seed: of the split, the order of the rows and all noise.
        progress: show a progress bar.
        checkpoint: a folder to keep the fit's state in, and to go on from.
        checkpoint_seconds: how often.
        checkpoint_steps: how often, in steps.
        distributed: share each batch among the processes that torchrun started.
    """

    objective: str = "elbo"
    particles: int = 1
    epochs: int = 100
    batch_size: int = 256
    optimizer: str = "adam"
    lr: float = 1e-3
    schedule: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    kl_warmup: int = 0
    valid: float = 0.1
    patience: int | None = None
    binarize: str | None = None
    compiled: bool | str = "auto"
    precision: str = "float32"
    seed: int = 0
    progress: bool = True
    checkpoint: str | None = None
    checkpoint_seconds: float = 60.0
    checkpoint_steps: int | None = None
    distributed: bool = False


@dataclass(frozen=True)
class ReadingOptions:
    """How the command line reads rows.

    Attributes:
        missing: texts of a CSV file that stand for a missing cell, as "?".
        names: column names of a CSV file without a first line of them.
        drop: columns that are not read.
        labels: a column (an .npz file's array, a data set's y) that is no data, but tells normal rows from anomalous ones.
        normal: the label of normal rows, or several, as [a,b]; rows of all others are anomalous.
        part: which rows, as 1/3: the first third of a random order, always the same; test: those published to test on.
    """

    missing: tuple[int | float | str, ...] | int | float | str = ()
    names: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    labels: str | None = None
    normal: tuple[int | float | str, ...] | int | float | str = 0
    part: str | None = None
