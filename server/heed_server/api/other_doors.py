"""Routes that cannot carry interventions: a body that asks for them there is refused, never ignored.

vLLM's bodies accept unknown fields. Without this, `interventions` sent to `/invocations`, `/tokenize` or
any route that a later vLLM adds would be dropped in silence.
"""

import json
import re
from collections.abc import Collection
from urllib.parse import unquote_plus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from heed_server.api.errors import error_response
from heed_server.api.requests import FIELD
from heed_server.api.reserved import reserved_path
from heed_server.engine.payload import RESERVED_KEY

_PART = re.compile(
    rf'(?i:content-disposition):[^\r\n]*[;\s](?i:name)\s*=\s*"?{FIELD}["; \t\r\n]'.encode()
)

CARRYING = frozenset(
    {
        "/v1/attention",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/interventions/validate",
        "/v1/messages",
        "/v1/responses",
    }
)
"""Routes that take the field."""


class OtherDoors:
    """ASGI middleware over every POST route that is not in `CARRYING`."""

    def __init__(self, app: ASGIApp, carrying: Collection[str] = CARRYING) -> None:
        self.app = app
        self.carrying = carrying

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in self.carrying:
            await self.app(scope, receive, send)
            return
        messages, body = await _read(receive)
        param = forbidden_field(body, Headers(scope=scope).get("content-type", ""))
        if param is not None:
            door = getattr(scope["app"].state, "heed_door", None)
            if door is not None:
                door.metrics.rejected("route" if param == FIELD else "reserved")
            takers = (
                ", ".join(sorted(self.carrying)) or "no route of a server that generates nothing"
            )
            refusal = error_response(
                f"{path} cannot carry {param}: interventions are taken by {takers}", param
            )
            await refusal(scope, receive, send)
            return
        await self.app(scope, _replay(messages, receive), send)


def forbidden_field(body: bytes, content_type: str = "application/json") -> str | None:
    """The path in `body` that only Heed's own routes take, or None.

    Looks at the top level of a JSON object (whatever its declared type), at the places of the reserved
    key, and, where the type is one of a form, at the names of its fields.
    """
    if _is_form_with_field(body, content_type):
        return FIELD
    # A name is literal, or escaped as \\u…, or the whole body is UTF-16 or UTF-32.
    signs = (FIELD.encode(), RESERVED_KEY.encode(), b"\\u")
    if b"\0" not in body[:4] and not any(sign in body for sign in signs):
        return None
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return None  # the route itself answers for what is not JSON
    if not isinstance(parsed, dict):
        return None
    return FIELD if parsed.get(FIELD) is not None else reserved_path(parsed)


def _is_form_with_field(body: bytes, content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return _PART.search(body) is not None
    if kind == "application/x-www-form-urlencoded":
        pairs = re.split(r"[&;]", body.decode("latin-1"))
        return any(unquote_plus(pair.partition("=")[0]) == FIELD for pair in pairs)
    return False


async def _read(receive: Receive) -> tuple[list[Message], bytes]:
    messages: list[Message] = []
    parts: list[bytes] = []
    while True:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request":
            break
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            break
    return messages, b"".join(parts)


def _replay(messages: list[Message], receive: Receive) -> Receive:
    waiting = iter(messages)

    async def replay() -> Message:
        message = next(waiting, None)
        return message if message is not None else await receive()

    return replay
