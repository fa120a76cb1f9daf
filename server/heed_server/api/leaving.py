"""The end of a server whose engine is gone: nothing holds it up, and its status says whether the engine failed.

vLLM kills an engine that has not drained in time, and then waits for the connections to close, which
requests that were cut off never do. When an engine dies by itself vLLM stops the server as if it had been
asked to, with status 0.
"""

import asyncio
from collections.abc import Callable
from typing import Any

WATCH_SECONDS = 1.0
PARTING_SECONDS = 5.0
"""For answers that are still on their way out."""

_failed: list[bool] = []
"""Of each engine client that was shut down, whether its engine was dead before."""


def note_failures(engine_client: Any) -> None:
    """Remember whether the engine is dead when its client is shut down for the first time.

    Afterwards that says nothing: an engine that does not end in time is killed.
    """
    stock: Callable[..., None] = engine_client.shutdown
    known = False

    def shutdown(*args: Any, **rest: Any) -> None:
        nonlocal known
        if not known:
            known = True
            _failed.append(bool(engine_client.engine_core.resources.engine_dead))
        stock(*args, **rest)

    engine_client.shutdown = shutdown


def engine_failed() -> bool:
    """Whether an engine of this process has died without being asked to end."""
    return any(_failed)


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
