"""The end of a server: requests under way end before the engine is told, and nothing holds up one whose engine is gone.

vLLM tells its engine first and closes its socket last. In between the engine lets requests end, but gives
every new one an empty answer, and answers no call, by which reports would come. With several API processes it
cuts off what is under way instead.

vLLM kills an engine that has not drained in time, and then waits for the connections to close, which
requests that were cut off never do. When an engine dies by itself vLLM stops the server as if it had been
asked to, with status 0.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from heed_server.api.open_requests import OpenRequests

WATCH_SECONDS = 1.0
PARTING_SECONDS = 5.0
"""For answers that are still on their way out."""

_failed: list[bool] = []
"""Of each engine client that was shut down, whether its engine was dead before."""


def drain_before_shutdown(engine_client: Any, requests: OpenRequests) -> None:
    """Let this process's requests end, for as long as vLLM would wait, before its client is shut down.

    vLLM then has what is left of that time: for what goes on behind a request that was answered.
    """
    stock: Callable[..., None] = engine_client.shutdown

    def shutdown(timeout: float | None = None) -> None:
        requests.drain()
        if timeout and not _holds_up_an_event_loop():
            began = time.monotonic()
            requests.wait_for_the_last(timeout, lambda: not engine_client.errored)
            timeout = max(0.0, timeout - (time.monotonic() - began))
        stock(timeout=timeout)

    engine_client.shutdown = shutdown


def _holds_up_an_event_loop() -> bool:
    """Whether this thread runs one: vLLM shuts down there when its server has ended, and no request would end."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


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
