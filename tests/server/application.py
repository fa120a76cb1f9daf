"""vLLM's application with Heed's plug-in, built without an engine."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser


@contextmanager
def application(
    tasks: tuple[Any, ...] = ("generate",), flags: Sequence[str] = (), model_config: Any = None
) -> Iterator[FastAPI]:
    """tasks: what the engine would say that it serves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_PLUGINS", "heed")
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(list(flags))
        yield build_app(arguments, tasks, model_config)


def doors(app: FastAPI) -> set[tuple[str, str]]:
    """Method and path of all routes that take bodies, with values put in where a path has a place for one.

    Also of those that the OpenAPI document leaves out.
    """
    return {
        (verb, re.sub(r"\{[^}]*\}", "1", getattr(route, "path", "")))
        for route in app.routes
        for verb in getattr(route, "methods", None) or ()
        if verb in ("POST", "PUT", "PATCH")
    }
