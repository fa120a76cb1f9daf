"""A request as a value that can be sent to another process, and an application's answer to it as a stream of values."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Scope

from heed_server.api.errors import TooLargeError
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
    """
    parts: asyncio.Queue[Head | bytes | None] = asyncio.Queue(PARTS_AHEAD)
    task = asyncio.create_task(_run(app, ask, parts))
    try:
        while (part := await parts.get()) is not None:
            yield part
    finally:
        task.cancel()


async def _run(app: ASGIApp, ask: Ask, parts: asyncio.Queue[Head | bytes | None]) -> None:
    unread = [ask.body]

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        # The client's leaving comes as a cancellation.
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            await parts.put(Head(message["status"], list(message.get("headers", ()))))
        elif message.get("body"):
            await parts.put(message["body"])

    try:
        await app(_scope(ask), receive, send)
    except Exception:
        # The application has answered with a 500 before; what is left is to say why.
        logger.exception("Heed: a request failed: %s %s", ask.method, ask.path)
    await parts.put(None)


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
