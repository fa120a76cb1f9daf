"""numba's settings: whose threads, and where compiled code is kept."""

import functools
import importlib.util
import os
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numba
import torch
from numba.np.ufunc import parallel

_alive: list[Any] = []
"""Compiled functions whose addresses are in use."""


class _Chosen(threading.local):
    """What numba was told last. It knows a number for each thread, and takes a lock to be told."""

    threads = 0


_chosen = _Chosen()


def choose_threads() -> int:
    """Number of threads that kernels run on: torch's. Call it from the thread that calls the kernels.

    numba's "omp" layer is GNU OpenMP, which torch uses too: in a vLLM worker, where torch's libgomp
    is preloaded and its threads are bound to cores, both then share one team of threads. Threads of
    the "workqueue" layer would all inherit the affinity of the thread that starts them.
    """
    threads = torch.get_num_threads()
    if not parallel._is_initialized:
        if "NUMBA_THREADING_LAYER" not in os.environ:
            omp = importlib.util.find_spec("numba.np.ufunc.omppool") is not None
            numba.config.THREADING_LAYER = "omp" if omp else "workqueue"
        if "NUMBA_NUM_THREADS" not in os.environ:
            # numba counts the cores this thread may run on, which is one in a bound worker.
            numba.config.NUMBA_NUM_THREADS = threads
    threads = min(threads, int(numba.config.NUMBA_NUM_THREADS))
    if _chosen.threads != threads:
        numba.set_num_threads(threads)
        _chosen.threads = threads
    return threads


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`numba.njit` that keeps machine code on disk where it can.

    numba tries NUMBA_CACHE_DIR, `__pycache__` beside the source, then the user's cache directory;
    with none of them writable it refuses to decorate, and the code is compiled anew in each process.
    """
    return _kept(functools.partial(numba.njit, nogil=True, error_model="numpy", **options))


def compiled_for_calls(signature: Any) -> Callable[[Callable[..., Any]], Callable[[], int]]:
    """Compile to a C function when its address is first asked for; returns what gives the address.

    Who calls it by address links none of its code, so nothing is optimised a second time with the
    caller. Kept on disk as `compiled` does.
    """

    def decorate(function: Callable[..., Any]) -> Callable[[], int]:
        @functools.cache
        def address() -> int:
            made = _kept(functools.partial(numba.cfunc, signature, error_model="numpy"))(function)
            _alive.append(made)
            result: int = made.address
            return result

        return address

    return decorate


def _kept(decorator: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return decorator(cache=True)(function)
        except RuntimeError as error:
            warnings.warn(f"compiled code is not kept: {error}", stacklevel=2)
            return decorator()(function)

    return decorate
