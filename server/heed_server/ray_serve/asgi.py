"""A request as a value that can be sent to another process, and an application's answer to it as a stream of values."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Scope

from heed_server.api.errors import BUSY_RETRY_SECONDS, TooLargeError, unavailable
from heed_server.ray_serve.affinity import affinity

logger = logging.getLogger("ray.serve")

Headers = Sequence[tuple[bytes, bytes]]
PARTS_AHEAD = 16
"""Parts of an answer that wait for a slow reader, before the application waits for it too."""


@dataclass(frozen=True)
class Ask:
    """A whole request. prompt: what Ray's prefix-aware router reads."""

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes
    prompt: str


@dataclass(frozen=True)
class Head:
    """What an answer begins with."""

    status: int
    headers: Headers

    def marked(self, header: tuple[bytes, bytes]) -> "Head":
        """The same with one more header."""
        return replace(self, headers=[*self.headers, header])


async def asked(request: Request, most_bytes: int) -> Ask:
    """The whole request. Raises `TooLargeError` as soon as its body is longer than that."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most_bytes:
            raise TooLargeError(most_bytes)
    scope = request.scope
    return Ask(
        method=scope["method"],
        path=scope["path"].removeprefix(scope.get("root_path", "")),
        query=scope["query_string"],
        headers=list(scope["headers"]),
        body=bytes(body),
        prompt=affinity(bytes(body)),
    )


async def answered(app: ASGIApp, ask: Ask) -> AsyncGenerator[Head | bytes, None]:
    """The head of the application's answer, and its body in parts as they are made.

    Closing the iterator tells the application that the client has left, and ends its work.

    Raises:
        Exception: what the application raised before its answer was whole, in its place.
    """
    parts: asyncio.Queue[Head | bytes | None] = asyncio.Queue(PARTS_AHEAD)
    task = asyncio.create_task(_run(app, ask, parts))
    try:
        while (part := await parts.get()) is not None:
            yield part
        await task
    finally:
        task.cancel()


async def _run(app: ASGIApp, ask: Ask, parts: asyncio.Queue[Head | bytes | None]) -> None:
    unread = [ask.body]
    whole = False

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        # The client's leaving comes as a cancellation.
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    async def send(message: Message) -> None:
        nonlocal whole
        if message["type"] == "http.response.start":
            await parts.put(Head(message["status"], list(message.get("headers", ()))))
            return
        if message.get("body"):
            await parts.put(message["body"])
        whole = not message.get("more_body", False)

    failure: Exception | None = None
    try:
        await app(_scope(ask), receive, send)
    except Exception as error:
        logger.exception("Heed: a request failed: %s %s", ask.method, ask.path)
        failure = error
    await parts.put(None)
    # An application that fails before it has begun has answered with a 500; a part of an answer must not look whole.
    if failure is not None and not whole:
        raise failure


async def relayed(
    parts: AsyncIterator[Head | bytes], lost: tuple[type[Exception], ...]
) -> Response:
    """The answer that comes in `parts`, once it has begun; a 503 where nobody is there to begin it.

    lost: what says so when it is raised.
    """
    try:
        head = await anext(parts)
    except lost as error:
        logger.warning("Heed: no replica has answered: %s", error)
        return unavailable("no replica could take the request", BUSY_RETRY_SECONDS)
    assert isinstance(head, Head)
    response = StreamingResponse(cast(AsyncIterator[bytes], parts), head.status)
    response.raw_headers = list(head.headers)
    return response


def _scope(ask: Ask) -> Scope:
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "method": ask.method,
        "path": ask.path,
        "raw_path": ask.path.encode(),
        "root_path": "",
        "query_string": ask.query,
        "headers": ask.headers,
        "client": None,
        "server": None,
    }
    return scope
