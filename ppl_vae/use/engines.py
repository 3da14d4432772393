"""Where independent tasks run: in worker processes of this machine, or on a Dask cluster. The builtin `map` is serial.

Each engine is a function in the place of `map`, for `compare`, `score_files` and `impute_files`: results come in the order
of the tasks, and are the same by every engine.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch

from ppl_vae.errors import PplVaeError, whole

Engine = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
RETRIES = 3


def processes(n: int) -> Engine:
    """Tasks in n worker processes, of one thread each; they start afresh (spawn), so a script needs its `__main__` guard.

    Where a worker is killed, as for want of memory, the tasks without a result run again, in new workers.

    Args:
        n: how many.

    Returns: what to give as `map`.

    Raises:
        OptionError: n is no whole number of at least 1.
        PplVaeError: from the engine, where workers were killed 4 times without one result in between.

    Example:
        >>> engine = processes(2)  # pv.score_files("runs/model", "tables", "scores", map=engine)
    """
    n = whole("n", n)

    def engine(function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        left, deaths = list(tasks), 0
        while left:
            pool = ProcessPoolExecutor(
                min(n, len(left)), get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
            )
            try:
                for result in pool.map(function, left):
                    left, deaths = left[1:], 0
                    yield result
            except BrokenProcessPool as error:
                if (deaths := deaths + 1) > RETRIES:
                    raise PplVaeError(
                        f"processes: got workers that were killed {deaths} times in a row, expected a result: "
                        "is there memory enough for so many?"
                    ) from error
            finally:
                pool.shutdown(cancel_futures=True)

    return engine


def dask(client: Any, retries: int = RETRIES) -> Engine:
    """Tasks on a Dask cluster. Where a worker dies its tasks run again elsewhere.

    All machines need this library, and the files by the same paths. A worker runs one task at a time, whatever its number
    of threads: start workers of one thread each (`threads_per_worker=1`).

    Args:
        client: a `distributed.Client`; install `ppl_vae[dask]`.
        retries: of a task that fails by an error that is not this library's; how often its workers may die says
            Dask's own `distributed.scheduler.allowed-failures`.

    Returns: what to give as `map`.

    Example:
        >>> from distributed import Client  # doctest: +SKIP
        >>> engine = dask(Client("tcp://scheduler:8786"))  # doctest: +SKIP
    """
    retries = whole("retries", retries, 0)

    def engine(function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        # not pure: what a task leaves on the disk is what counts
        futures = client.map(partial(alone, function), list(tasks), retries=retries, pure=False)
        try:
            for place, future in enumerate(futures):
                result = future.result()
                futures[place] = None  # whose result the cluster need not keep
                if isinstance(result, PplVaeError):
                    raise result
                yield result
        finally:
            client.cancel([future for future in futures if future is not None])

    return engine


def alone(function: Callable[[Any], Any], task: Any) -> Any:
    """The result of a task by one thread, no other task running in this process; an error of ours is a result, for it
    would be the same if the task ran again."""
    with _ONE:  # Pyro's stack of handlers is the process's
        torch.set_num_threads(1)
        try:
            return function(task)
        except PplVaeError as error:
            return error


_ONE = threading.Lock()
