"""Triton's interpreter in a process that may have imported Triton before.

TRITON_INTERPRET is read when a function is decorated, also by Triton's own library. So that library
is exchanged, and Heed's kernels are imported anew; nothing in this process compiles kernels.
"""

import importlib
import os
import sys

from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction


def interpret() -> None:
    """From now on `heed_kernels.triton` runs in the interpreter."""
    # It decorates functions too, and must do so before the exchange.
    importlib.import_module("triton.experimental.gluon")
    for name, module in list(sys.modules.items()):
        if name.startswith("triton.language"):
            for key, value in list(vars(module).items()):
                if isinstance(value, JITFunction):
                    setattr(module, key, InterpretedFunction(value.fn))
        elif name.startswith("heed_kernels.triton"):
            del sys.modules[name]
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        import heed_kernels.triton  # noqa: F401
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before
