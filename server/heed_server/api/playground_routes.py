"""The playground: a page at `/`, its files under `/playground/`, and nothing else of the file system."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response

DIRECTORY = Path(__file__).parents[1] / "playground"
PAGE = "index.html"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        # Pictures for the prompt are data URIs made by the page.
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # The browser itself refuses to make markup out of a text.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Content-Security-Policy: code, styles and calls of this server's alone, and no markup out of texts."""


@dataclass(frozen=True)
class ServedFile:
    """A file as it was when the server started; tag: its ETag."""

    content: bytes
    media_type: str
    tag: str

    @classmethod
    def read(cls, path: Path) -> "ServedFile":
        """Raises KeyError for a type of file that a page does not have."""
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()[:32]
        return cls(content, TYPES[path.suffix], f'"{digest}"')

    def response(self, if_none_match: str | None) -> Response:
        """The file, or 304 where the client has it already.

        if_none_match: the header of that name.
        """
        headers = {
            "Cache-Control": "no-cache",  # kept, and asked about: an upgrade is seen at once
            "Content-Security-Policy": POLICY,
            "ETag": self.tag,
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        if if_none_match is not None and _names(if_none_match, self.tag):
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def _names(if_none_match: str, tag: str) -> bool:
    listed = {each.strip().removeprefix("W/") for each in if_none_match.split(",")}
    return "*" in listed or tag in listed


def playground_router(directory: Path = DIRECTORY) -> APIRouter:
    """GET and HEAD of the page and of each file beside it, each by a route of its own.

    No path is made from a request, so there is none to be misled.
    """
    router = APIRouter()
    for path in sorted(directory.iterdir()):
        served = _handler(ServedFile.read(path))
        places = ["/", "/playground"] if path.name == PAGE else [f"/playground/{path.name}"]
        for place in places:
            router.add_api_route(place, served, methods=["GET", "HEAD"], include_in_schema=False)
    return router


def _handler(file: ServedFile) -> Callable[[Request], Awaitable[Response]]:
    async def serve(request: Request) -> Response:
        return file.response(request.headers.get("if-none-match"))

    return serve
