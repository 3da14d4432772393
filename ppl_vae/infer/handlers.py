"""Effect handlers for training: they stand outside the objective's own and see its sites as they pass."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import nan
from typing import Any

import torch
from pyro.infer import RenyiELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_vae.errors import OptionError, number
from ppl_vae.infer.elbo import TensorELBO
from ppl_vae.infer.noise import Keyed, Request
from ppl_vae.infer.objectives import Objective
from ppl_vae.infer.precision import PRECISIONS
from ppl_vae.model.discrete import relaxed


@contextmanager
def surroundings(
    target: Objective,
    elbo: Any,
    numbers: Tensor,
    keys: Tensor,
    *,
    kl_weight: float | Tensor | None = None,
    share: float | Tensor = 1.0,
    tally: "Tally | None" = None,
    present: Tensor | None = None,
    supply: Callable[[Request], Tensor] | None = None,
    precision: str = "float32",
    everyone: Tensor | None = None,
) -> Iterator[None]:
    """What every objective runs in: keyed noise, the weights of its terms, and who watches.

    Args:
        elbo: what `target` made.
        numbers: (b,) of the batch's rows in the data.
        keys: (b,) of their noise.
        kl_weight: of the KL term; None: the objective's own at the end of a fit.
        share: of the data's rows in the batch.
        present: (b,) of bool, rows that count; None: all.
        supply: gives the noise that sites ask for, all of which then have to be drawn from it; None: by the keys.
        precision: in `PRECISIONS`, of the products of nets.
        everyone: keys of all rows of the batch, where these are some of them.
    """
    if isinstance(elbo, TensorELBO):
        elbo.at(numbers, keys)
    with ExitStack() as handlers:  # outermost first: each then sees distributions that every plate has expanded
        handlers.enter_context(PRECISIONS[precision]())
        handlers.enter_context(
            Keyed(
                keys,
                strict=supply is not None,
                reparameterized=target.reparameterized,
                supply=supply,
                everyone=everyone,
            )
        )
        handlers.enter_context(LatentScale(target.kl_weight(1.0) if kl_weight is None else kl_weight))
        handlers.enter_context(SharedScale(share))
        if present is not None:
            handlers.enter_context(Present(present))
        if tally is not None:
            handlers.enter_context(tally)
        if isinstance(elbo, RenyiELBO):
            handlers.enter_context(RowsOnly())
        if "temperature" in target.options:
            handlers.enter_context(Relaxed(target.options["temperature"]))
        yield


class Tally(Messenger):
    """Keeps the log density of every site as the objective computes it, before any weight.

    Attributes:
        sites: {(role, name): [(S, n) for each time that the program ran]}; role: "q" of the guide, "prior" or
            "likelihood" of the model.
        labels: the weighted log probabilities of known classes, which are in the objective and in no bound.
        summed_out: whether any site was enumerated.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sites: dict[tuple[str, str], list[Tensor]] = {}
        self.labels: list[Tensor] = []
        self.summed_out = False

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        if not any(frame.name == "data" for frame in msg["cond_indep_stack"]):
            return
        labels = msg["is_observed"] and msg["name"] != "x"
        self.summed_out |= msg["infer"].get("_enumerate_dim") is not None
        role = "likelihood" if msg["is_observed"] else "q" if msg["value"] is None else "prior"
        kept = self.labels if labels else self.sites.setdefault((role, msg["name"]), [])
        weight = msg["scale"] if labels else 1.0
        me = weakref.ref(msg["fn"])  # a strong one would be a cycle, and keep the step's graph alive

        def log_prob(value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            fn = me()
            result = type(fn).log_prob(fn, value, *args, **kwargs)  # type: ignore[union-attr]
            kept.append(weight * result.detach())
            return result

        msg["fn"].log_prob = log_prob

    def total(self, role: str) -> Tensor:
        """Summed over the sites of a role, (S, n); S counts particles, at once or one after another."""
        sites = [torch.stack(v).flatten(0, -2) for (r, _), v in self.sites.items() if r == role and v]
        return sum(sites, start=torch.zeros(()))

    def first_non_finite(self, numbers: Tensor) -> tuple[str | None, list[int]]:
        """The first site whose log density is not finite and the rows at fault; None and all rows if there is none."""
        for (_, name), kept in self.sites.items():
            if not kept:
                continue
            bad = ~torch.isfinite(torch.stack(kept)).reshape(-1, len(numbers))
            if bad.any():
                return name, numbers[bad.any(0)].tolist()
        return None, numbers.tolist()

    def figures(self, target: Objective, value: float) -> dict[str, float]:
        """Means over draws and rows: the bound that the objective raises, its reconstruction and KL terms.

        Where sites are summed out the terms are not apart: the bound is the objective's `value` without the labels' term.
        """
        if self.summed_out:
            labels = torch.stack(self.labels).mean() if self.labels else 0.0
            return {"bound": value - float(labels), "reconstruction": nan, "kl": nan}
        return {name: float(values.mean()) for name, values in self.by_row(target).items()}

    def by_row(self, target: Objective) -> dict[str, Tensor]:
        """Of each row, (b,): the bound that the objective raises, its reconstruction and KL terms; NaN without a guide."""
        log_lik = self.total("likelihood")
        if not target.trains_guide:
            unknown = torch.full_like(log_lik[0], nan)
            return {"bound": unknown, "reconstruction": log_lik.mean(0), "kl": unknown}
        kl = self.total("q") - self.total("prior")
        return {"bound": target.per_row_bound(log_lik - kl), "reconstruction": log_lik.mean(0), "kl": kl.mean(0)}


class RowsOnly(Messenger):
    """Refuses sites that all rows share, for Pyro's `RenyiELBO`: one such site makes it weigh the whole batch as one."""

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg) and not any(frame.name == "data" for frame in msg["cond_indep_stack"]):
            raise OptionError(
                f"objective: got RenyiELBO with the site {msg['name']!r} that all rows share, where it weighs the whole "
                "batch as one; expected 'iwae' or 'renyi', each row's own"
            )


class Present(Messenger):
    """Leaves out rows that only fill a batch up, in both programs."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg) and any(frame.name == "data" for frame in msg["cond_indep_stack"]):
            msg["mask"] = self.rows if msg["mask"] is None else msg["mask"] & self.rows


class SharedScale(Messenger):
    """Weighs the sites that all rows share by the share of the rows at hand, so that a sum over batches has them once."""

    def __init__(self, share: float | Tensor) -> None:
        super().__init__()
        self.share = share

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg) and not any(frame.name == "data" for frame in msg["cond_indep_stack"]):
            msg["scale"] = msg["scale"] * self.share


class Relaxed(Messenger):
    """Puts a continuous relaxation in the place of each discrete latent site of both programs."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = number("temperature", temperature)

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg) and msg["fn"].support.is_discrete:
            msg["fn"] = relaxed(msg["fn"], torch.tensor(self.temperature))


class LatentScale(Messenger):
    """Weights log p(z) and log q(z|x) in both programs. Pyro's analytic KL reads the guide's weight, so both need it."""

    def __init__(self, weight: float | Tensor) -> None:
        super().__init__()
        self.weight, self.matters = weight, isinstance(weight, Tensor) or weight != 1.0

    def _pyro_sample(self, msg: Any) -> None:
        if self.matters and not msg["is_observed"] and not site_is_subsample(msg):
            msg["scale"] = msg["scale"] * self.weight
