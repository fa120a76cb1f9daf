"""Torch on one thread, for many small operations."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def one_thread(function: Callable[P, R]) -> Callable[P, R]:
    """`function` with torch's operations on one thread, and as many as before when it returns.

    Handing an operation on some kilobytes to several threads takes longer than the operation, and
    milliseconds where the cores have other work: the threads wait for each other by spinning.
    A vLLM worker on the CPU takes `torch.set_num_threads` away once its threads are bound to cores;
    what torch itself calls is left, and the threads and where they are bound stay as they are.
    """

    @wraps(function)
    def alone(*arguments: P.args, **named: P.kwargs) -> R:
        threads = torch.get_num_threads()
        if threads == 1:
            return function(*arguments, **named)
        torch._C.set_num_threads(1)
        try:
            return function(*arguments, **named)
        finally:
            torch._C.set_num_threads(threads)

    return alone
