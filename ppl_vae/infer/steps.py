"""The steps of a fit, one after another: Pyro's SVI, with noise by key and a record of the densities that it met."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pyro.infer import SVI, config_enumerate
from torch import Tensor

from ppl_vae.data.schema import Batch
from ppl_vae.errors import NonFiniteError, PplVaeError, ProgramError, first_line
from ppl_vae.infer.distributed import ALONE, Ranks
from ppl_vae.infer.elbo import state_of
from ppl_vae.infer.handlers import Tally, surroundings
from ppl_vae.infer.history import History
from ppl_vae.infer.noise import step_keys
from ppl_vae.infer.objectives import Objective
from ppl_vae.infer.optim import OneOptimizer
from ppl_vae.infer.rows import Rows

EXTREME = 1e6
"""An encoded value of this size is named beside a loss that is not finite."""


class Plan(NamedTuple):
    """The steps of an epoch.

    Attributes:
        batches: row numbers (b,) of each.
        factors: of the step size.
        kl_weights: of the KL term.
    """

    batches: list[Tensor]
    factors: list[float]
    kl_weights: list[float]

    def rest(self, done: int) -> "Plan":
        """What is left after so many."""
        return Plan(self.batches[done:], self.factors[done:], self.kl_weights[done:])


class Step:
    """One step of SVI, with noise keyed by (seed, step, row) and a record of the densities that it met."""

    def __init__(
        self,
        vae: Any,
        target: Objective,
        particles: int,
        one: OneOptimizer,
        seed: int,
        rows: Rows,
        precision: str = "float32",
        ranks: Ranks = ALONE,
    ) -> None:
        self.precision, self.ranks = precision, ranks
        self.vae, self.target, self.one, self.seed, self.number = vae, target, one, seed, int(vae.steps)
        self.particles, self.rows = particles, rows
        elbo: Any = target.make(particles)
        self.elbo = elbo
        # what judges a batch as a whole, or is not known not to, each process does for itself, alike
        self.shared = (
            ranks.size > 1 and target.per_row and not target.keeps and target.tells_rows and not state_of(elbo)
        )

        def loss_and_grads(*args: Any, **kwargs: Any) -> float:
            one.loss = elbo.loss_and_grads(*args, **kwargs)
            return one.loss

        guide = config_enumerate(vae.guide) if target.enumerates else vae.guide
        self.svi = SVI(vae.model, guide, one, loss=elbo.loss, loss_and_grads=loss_and_grads)
        self.sums: dict[str, float] = {}

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters, once the first step has been taken."""
        return self.one.parameters

    def still(self) -> "Step":
        """These steps, whatever a callback has changed."""
        return self

    def optimizers(self) -> Iterable[tuple[Tensor, dict[str, Tensor]]]:
        """What the optimiser keeps of each parameter."""
        return self.one.state.items()

    def each(self, plan: Plan, history: History) -> Iterator[None]:
        """A step on each batch, and a pause; errors show the history so far."""
        for numbers, factor, kl_weight in zip(*plan):
            self.one.scale_lr(factor)
            shared = self.shared and len(numbers) >= self.ranks.size
            part = self.ranks.part(len(numbers)) if shared else slice(None)
            self.one.sum = self.ranks.sum if shared else None
            self.on(self.rows.take(numbers, part), numbers, kl_weight, history, part)
            yield

    def on(self, batch: Batch, numbers: Tensor, kl_weight: float, history: History, part: slice = slice(None)) -> None:
        """A step on the rows of these numbers, or on a part of them where other processes have the others."""
        one, tally = self.one, Tally()
        one.rows = len(numbers)
        everyone = step_keys(numbers, self.seed, self.number)
        numbers, keys = numbers[part], everyone[part]
        share = len(numbers) / len(self.rows.train)
        weights: Any = {"kl_weight": kl_weight, "share": share, "precision": self.precision, "everyone": everyone}
        with surroundings(self.target, self.elbo, numbers, keys, **weights, tally=tally):
            self._svi_step(batch)
        if one.refused:
            raise self._error(tally, numbers, history)
        figures = {
            "objective": -one.loss / len(numbers),
            "grad_norm": float(one.grad_norm),
        }
        figures |= tally.figures(self.target, figures["objective"])
        observed = self.rows.jacobian(numbers)
        for name in ("bound", "reconstruction", "objective"):
            figures[name] += observed
        own = len(numbers) if one.sum is not None or self.ranks.rank == 0 else 0  # of what all do alike, one counts
        for name, value in {**figures, "rows": 1.0}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * own
        self.number += 1

    def _svi_step(self, batch: Batch) -> None:
        args, given = batch.arguments()
        try:
            self.svi.step(*args, **given)
        except PplVaeError:
            raise
        except Exception as error:  # whatever an objective raises on programs that are not made for it
            text = f"step {self.number}: the objective failed on this model and guide: {first_line(error)}"
            raise ProgramError(text) from error

    def _error(self, tally: Tally, numbers: Tensor, history: History) -> NonFiniteError:
        """Says where the loss or gradient stopped being finite; the parameters have not moved."""
        site, rows = tally.first_non_finite(numbers)
        if site is not None:
            where = f"log density of site {site!r} at {len(rows)} rows, the first {rows[:5]},"
        else:
            names = [n for n, p in self.vae.named_parameters() if any(p is q for q in self.one.not_finite)]
            where = f"gradient of {', '.join(names[:3]) or 'the loss'} in a batch of {len(rows)} rows"
        return NonFiniteError(
            f"step {self.number}: got a {where} that is not finite; the model holds its state before this step. "
            f"{self._extreme(numbers) or 'A smaller lr, max_grad_norm or a larger scale_floor may help'}",
            site=site,
            rows=rows,
            step=self.number,
            history=history,
        )

    def _extreme(self, numbers: Tensor) -> str:
        """The largest cell among these rows, where it is so large that it may be why."""
        sizes = self.rows.data.x[numbers].abs()
        size, (row, column) = float(sizes.max()), divmod(int(sizes.argmax()), sizes.shape[-1])
        if size < EXTREME:
            return ""
        name = f"x{column}" if self.vae.schema is None else self.vae.schema.names[column]
        return f"Column {name!r} has in row {int(numbers[row])} a value of size {size:.3g} once encoded"

    def means(self) -> dict[str, float]:
        """Means over the rows since the last call, in the data's own units."""
        sums = self.ranks.totals(self.sums)
        rows = sums.pop("rows")
        self.sums = {}
        return {name: value / rows for name, value in sums.items()}
