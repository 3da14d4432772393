"""A fit on several processes or machines: each takes its share of every batch, and all take the same step.

    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nproc-per-node 2 train.py     # which calls fit(..., distributed=True)

Every process has the whole table, and picks its rows of each batch: order, pixels and noise are functions of the seed, so
that the fit is that of one process, but for rounding. Gradients are summed in one bucket before the step. Noise that a net
draws itself, as dropout does, is not among these: parts of a batch then share it.

The variable lets workers that are started again find each other (pytorch issue 135712), on several machines too.
"""

import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as torch_distributed
from torch import Tensor

from ppl_vae.errors import OptionError, ProgramError
from ppl_vae.files import digest

log = logging.getLogger(__name__)

T = TypeVar("T")


class Ranks(NamedTuple):
    """The processes of a fit.

    Attributes:
        rank: the number of this one, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def part(self, n: int) -> slice:
        """The places, of n, that are this process's: as many as another's, or one less."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def sum(self, tensors: list[Tensor]) -> list[Tensor]:
        """Each summed over processes, the same bits in all of them; in one message."""
        if self.size == 1:
            return tensors
        bucket = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch_distributed.all_reduce(bucket)
        parts = bucket.split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors)]

    def total(self, *numbers: float) -> list[float]:
        """Each number summed over processes."""
        if self.size == 1 or not numbers:
            return list(numbers)
        return self.sum([torch.tensor(numbers, dtype=torch.float64, device=_device())])[0].tolist()

    def totals(self, sums: dict[str, float]) -> dict[str, float]:
        """The same, by name."""
        return dict(zip(sums, self.total(*sums.values())))

    def expect_same(self, what: dict[str, str], error: type[Exception], text: str) -> None:
        """Refuse to go on where processes differ.

        Args:
            what: texts that have to be the same in all, by name.
            text: for the error: what was got of whom, with places for `name` and `rank`.
        """
        own = torch.tensor([int(digest(value.encode())[:15], 16) for value in what.values()], device=_device())
        found = [torch.empty_like(own) for _ in range(self.size)]
        torch_distributed.all_gather(found, own)
        for rank, other in enumerate(found):
            if (apart := (other != found[0]).nonzero()).numel():
                raise error(text.format(name=list(what)[int(apart[0])], rank=rank))

    def from_first(self, make: Callable[[], T], pack: Callable[[T], bytes], unpack: Callable[[bytes], T]) -> T:
        """What process 0 makes, in all of them.

        Raises: what making it raises; in the others OptionError.
        """
        if self.size == 1:
            return make()
        made, content = None, None
        try:
            if self.rank == 0:
                made = make()
                content = pack(made)
        finally:  # of an error the others hear too
            size = torch.tensor(-1 if content is None else len(content), device=_device())
            torch_distributed.broadcast(size, 0)
        if self.rank == 0:
            assert content is not None
        elif size < 0:
            raise OptionError("distributed: process 0 failed, and says why")
        raw = torch.zeros(int(size), dtype=torch.uint8, device=_device())
        if content:
            raw.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        if len(raw):
            torch_distributed.broadcast(raw, 0)
        return unpack(raw.cpu().numpy().tobytes()) if self.rank else made  # type: ignore[return-value]


ALONE = Ranks()


def ranks(distributed: Any, on_gpu: bool) -> Ranks:
    """The processes that torchrun started, if the fit is to be theirs; this one alone if not.

    Raises: OptionError outside of torchrun.
    """
    if not isinstance(distributed, bool):
        raise OptionError(f"distributed: got {distributed!r}, expected True or False")
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if not distributed:
        if started > 1:
            log.warning("%d processes were started, and each makes the whole fit; distributed=True shares it", started)
        return ALONE
    if not torch_distributed.is_initialized():
        if "RANK" not in os.environ:
            raise OptionError(
                "distributed: got True in a process that torchrun did not start, expected torchrun, or False"
            )
        if on_gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        store, rank, size = next(torch_distributed.rendezvous("env://"))
        # workers that were started again must not read what those before them wrote
        own = torch_distributed.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        torch_distributed.init_process_group("nccl" if on_gpu else "gloo", store=own, rank=rank, world_size=size)
    return Ranks(torch_distributed.get_rank(), torch_distributed.get_world_size())


def expect_equal(found: Ranks, vae: Any) -> None:
    """Processes hold the same model after a fit, bit for bit.

    Raises: ProgramError.
    """
    if found.size == 1:
        return
    found.expect_same(
        {"parameters": weights_digest(vae)},
        ProgramError,
        "distributed: process {rank} ended with other {name} than process 0; a model's programs have to be the same in all, "
        "without noise of their own, as of layers that keep averages of their batches",
    )


def weights_digest(vae: Any) -> str:
    """SHA-256 of a model's parameters and buffers."""
    return digest(b"".join(value.detach().cpu().numpy().tobytes() for value in vae.state_dict().values()))


def _device() -> torch.device:
    """Where what processes send each other has to be."""
    on_gpu = torch_distributed.is_initialized() and torch_distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
