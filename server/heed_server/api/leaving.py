"""The end of a server whose engine is gone: nothing holds it up, and its status says whether the engine failed.

vLLM kills an engine that has not drained in time, and then waits for the connections to close, which
requests that were cut off never do. When an engine dies by itself vLLM stops the server as if it had been
asked to, with status 0.
"""

import asyncio
from multiprocessing.process import BaseProcess
from typing import Any

ENGINES: list[BaseProcess] = []
"""The engine processes that this one started."""

WATCH_SECONDS = 1.0
PARTING_SECONDS = 5.0
"""For answers that are still on their way out."""


def remember_engines(engine_client: Any) -> None:
    """Take down the engine processes behind a client."""
    manager = engine_client.engine_core.resources.engine_manager
    ENGINES.extend(getattr(manager, "processes", []))


def engine_failed() -> bool:
    """Whether an engine has ended by itself, or had to be killed."""
    return any(process.exitcode for process in ENGINES)


async def leave_with_the_engine(engine_client: Any, state: Any) -> None:
    """Close what is open when the server is to end and has no engine any more.

    state: the application's, where vLLM puts its uvicorn server when it begins to serve.
    """
    while True:
        server = getattr(state, "server", None)
        if server is not None and server.should_exit and engine_client.errored:
            break
        await asyncio.sleep(WATCH_SECONDS)
    await asyncio.sleep(PARTING_SECONDS)
    server.force_exit = True
