"""vLLM's application with its engine running, for a host that has a server of its own (Ray Serve)."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
from vllm.entrypoints.launchers.app import build_app

from heed_server import launcher


@asynccontextmanager
async def application(arguments: Sequence[str]) -> AsyncIterator[tuple[FastAPI, Any]]:
    """The application and its engine client, until the block ends.

    arguments: those of `heed serve`; host, port and what else concerns its own server mean nothing here.

    Raises:
        SettingsError, ImportError, SystemExit: as `launcher.read`.
    """
    parsed = launcher.read(arguments)
    async with build_async_engine_client(parsed) as engine_client:
        tasks = await engine_client.get_supported_tasks()
        app = build_app(parsed, tasks, engine_client.model_config)
        await init_app_state(engine_client, app.state, parsed, tasks)
        async with app.router.lifespan_context(app):
            yield app, engine_client
