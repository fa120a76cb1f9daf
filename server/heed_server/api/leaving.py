"""The end of a server whose engine is gone: connections that nobody will answer do not hold it up.

vLLM kills an engine that has not drained in time, and then waits for the connections to close, which
requests that were cut off never do.
"""

import asyncio
from typing import Any

WATCH_SECONDS = 1.0
PARTING_SECONDS = 5.0
"""For answers that are still on their way out."""


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
