"""Normalizing flows: one module, a prior when called with nothing, a posterior when called with a net's output.

The transforms are zuko's (Rozet et al.), since Pyro's own are no longer developed (pyro PR 3302).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, Distribution, constraints

from ppl_vae.errors import OptionError, choose, whole
from ppl_vae.model.families import SCALE_LINKS


@contextmanager
def _validation_kept() -> Iterator[None]:
    before = Distribution._validate_args
    try:
        yield
    finally:
        Distribution.set_default_validate_args(bool(before))


with _validation_kept():  # importing zuko turns torch's checks of arguments off, for everybody
    from zuko.flows import MAF, NSF
    from zuko.transforms import ComposedTransform

START = 0.01
"""Factor on the first weights of the layers that give the transforms' parameters: a flow starts near the identity."""

KINDS: dict[str, Callable[..., nn.Module]] = {"spline": partial(NSF, passes=2), "affine": MAF}


class FlowDistribution(dist.TorchDistribution):
    """The distribution of transform(e), e ~ base; event (k,).

    A draw remembers its base value and log determinant, so that `log_prob` of a distribution's own last draw inverts
    nothing.

    Args:
        base: distribution of e, event (k,).
        transform: invertible, e (..., k) to z (..., k), with zuko's `call_and_ladj`.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, base: Any, transform: Any, validate_args: bool | None = None) -> None:
        self.base, self.transform = base, transform
        self._last: tuple[Tensor, Tensor, Tensor, bool] | None = None
        super().__init__(base.batch_shape, base.event_shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "FlowDistribution":
        return FlowDistribution(self.base.expand(batch_shape), self.transform, validate_args=self._validate_args)

    def push(self, base_value: Tensor) -> Tensor:
        """The draw z (..., k) that belongs to a value (..., k) of the base."""
        z, ladj = self.transform.call_and_ladj(base_value)
        self._last = (z, base_value, ladj, torch.is_grad_enabled())
        return z

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.push(self.base.rsample(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        if self._last is not None and value is self._last[0] and self._last[3] >= torch.is_grad_enabled():
            _, base_value, ladj, _ = (
                self._last
            )  # a draw made without gradients has none to give: it is inverted instead
            return self.base.log_prob(base_value) - ladj
        base_value, ladj = self.transform.inv.call_and_ladj(value)
        return self.base.log_prob(base_value) + ladj


class Flow(nn.Module):
    """z = loc + scale * f(e; context), e ~ N(0, I), with an invertible f: a flow of k dimensions.

    Called with nothing it is a prior: loc 0, scale 1 and context 0, event (k,). Called with raw numbers (..., width) it is
    a posterior, whose loc, scale and context they give: batch (...), event (k,). The scale comes after f, so that the
    splines, which bend [-5, 5] only, act in units of the posterior's own width.

    Args:
        latent: k.
        kind: "spline": neural spline coupling, rational-quadratic (Durkan et al. 2019), two passes each way, linear
            outside [-5, 5]. "affine": masked autoregressive (Papamakarios et al. 2017), one pass one way and k the other.
        transforms: how many, each in the reverse order of the one before.
        hidden: widths of the hidden layers of each transform's net.
        context: numbers beside loc and scale that a posterior's net gives.
        inverse: which way "affine" takes one pass: False the density's (a prior), True that of drawing (the inverse
            autoregressive flow, Kingma et al. 2016; the density of its own draw costs nothing).
        link: of the posterior's scale, a name in `SCALE_LINKS`.

    Raises: OptionError.

    Example:
        >>> flow = Flow(2, context=4)
        >>> flow().event_shape, flow(torch.zeros(5, flow.width)).batch_shape
        (torch.Size([2]), torch.Size([5]))
    """

    loc: Tensor
    scale: Tensor
    context: Tensor

    def __init__(
        self,
        latent: int,
        kind: str = "spline",
        transforms: int = 3,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        *,
        inverse: bool = False,
        link: str = "softplus",
    ) -> None:
        super().__init__()
        here = torch.get_default_device()
        self.latent, self.inverse, self.link = latent, inverse, choose("scale_link", link, SCALE_LINKS)
        if isinstance(hidden, str) or not isinstance(hidden, Sequence):
            raise OptionError(f"flow_hidden: got {hidden!r}, expected a sequence of whole numbers such as (64, 64)")
        self.text = (
            f"Flow({latent}, {kind!r}, {transforms}, {tuple(hidden)}, {context}, inverse={inverse}, link={link!r})"
        )
        with torch.device("cpu"):  # zuko's masks cannot be worked out on "meta", where a saved model is laid out
            flow = choose("flow", kind, KINDS)(
                features=whole("latent", latent),
                context=whole("context", context, 0),
                transforms=whole("transforms", transforms),
                hidden_features=[whole("flow_hidden", size) for size in hidden],
                activation=nn.SiLU,  # smooth, for samplers that follow gradients
            )
        self.transform = flow.transform.to(here)
        self.register_buffer("loc", torch.zeros(latent))
        self.register_buffer("scale", torch.ones(latent))
        self.register_buffer("context", torch.zeros(context))
        self.width = 2 * latent + context
        with torch.no_grad():
            for part in self.transform.transforms:
                for parameter in part.hyper[-1].parameters() if hasattr(part, "hyper") else part.parameters():
                    parameter *= START

    def __repr__(self) -> str:
        return self.text  # zuko's draws random numbers, and needs values

    def forward(self, raw: Tensor | None = None) -> FlowDistribution:
        """The distribution of z.

        Args:
            raw: numbers (..., width) that the transforms depend on; None where there are none.

        Returns: p(z), or q(z|x) at these numbers, with event (k,).
        """
        loc, scale, context = self.loc, self.scale, self.context
        if raw is not None:
            loc, unbounded, context = raw.split([self.latent, self.latent, len(self.context)], -1)
            scale = self.link(unbounded)
        inner = self.transform(context if len(self.context) else None)  # zuko's direction of one pass
        outer = AffineTransform(loc, scale, event_dim=1)
        base = dist.Normal(self.loc, self.scale).to_event(1).expand(loc.shape[:-1])
        return FlowDistribution(base, ComposedTransform(inner if self.inverse else inner.inv, outer))
