"""Largest body of a request: what is longer is refused before it is held in memory."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from heed_server.api.errors import TooLargeError, error_response
from heed_server.settings import DEFAULT_BODY_BYTES


class BodyLimit:
    """ASGI middleware: 413 for a body that says it is too long, or turns out to be."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        door = getattr(scope["app"].state, "heed_door", None)
        most = DEFAULT_BODY_BYTES if door is None else door.settings.max_body_bytes
        answering = False
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise TooLargeError(most)
            return message

        async def watched(message: Message) -> None:
            nonlocal answering
            answering = True
            await send(message)

        try:
            declared = Headers(scope=scope).get("content-length", "")
            if declared.isdecimal() and int(declared[:20]) > most:
                raise TooLargeError(most)
            await self.app(scope, counted, watched)
        except TooLargeError as error:
            if answering:
                raise
            await error_response(error.detail, None, error.status_code)(scope, receive, send)
