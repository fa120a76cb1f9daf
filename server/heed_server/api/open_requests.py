"""Requests that are open: no more than the operator allows, and none that comes while the server drains."""

import time
from collections.abc import Callable
from threading import Condition

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from heed_server.api.errors import BUSY_RETRY_SECONDS, unavailable

MEASURED = frozenset({"/metrics"})
"""Answered whatever happens: a drain should be seen."""
PROBES = frozenset({"/health", "/ping", "/v1/models"})
"""Answered under any load, so that nobody restarts a server for being busy; not while it drains."""
DRAINING_RETRY_SECONDS = 5
"""By then whoever sends requests has found another server, or this one's successor."""
LOOK_SECONDS = 0.5
"""How often a drain looks whether the engine is still there."""


class NotTakenError(Exception):
    """A request that is not taken now. seconds: after which it is worth coming again."""

    def __init__(self, why: str, seconds: int) -> None:
        super().__init__(why)
        self.seconds = seconds


class OpenRequests:
    """Counts requests in the event loop; another thread may wait for the last one.

    most: requests that may be open at once; None: any number.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self._open = 0
        self._draining = False
        self._changed = Condition()

    def begin(self) -> None:
        """One more is open. Raises `NotTakenError` where there is no place for it."""
        with self._changed:
            if self._draining:
                raise NotTakenError("the server is shutting down", DRAINING_RETRY_SECONDS)
            if self.most is not None and self._open >= self.most:
                many = f"{self.most} requests are open, the most that this server takes at once"
                raise NotTakenError(many, BUSY_RETRY_SECONDS)
            self._open += 1

    def end(self) -> None:
        """One that had begun is over."""
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    @property
    def draining(self) -> bool:
        """Whether the server takes no more."""
        return self._draining

    def drain(self) -> None:
        """Take no more from now on."""
        with self._changed:
            self._draining = True

    def wait_for_the_last(self, seconds: float, worth_waiting: Callable[[], bool]) -> None:
        """Return when none is open, when the time is up, or when waiting has become pointless."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while (left := deadline - time.monotonic()) > 0 and worth_waiting():
                if self._changed.wait_for(lambda: not self._open, min(left, LOOK_SECONDS)):
                    return


class Entrance:
    """ASGI middleware: counts requests, and answers 503 for those that are not taken."""

    def __init__(self, app: ASGIApp, requests: OpenRequests) -> None:
        self.app = app
        self.requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in MEASURED or (path in PROBES and not self.requests.draining):
            await self.app(scope, receive, send)
            return
        try:
            self.requests.begin()
        except NotTakenError as error:
            await self._refusal(error, scope)(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        finally:
            self.requests.end()

    def _refusal(self, error: NotTakenError, scope: Scope) -> Response:
        response = unavailable(str(error), error.seconds)
        if self.requests.draining:
            # Whoever keeps the connection would go on asking a server that is about to end.
            response.headers["Connection"] = "close"
            return response
        door = getattr(scope["app"].state, "heed_door", None)
        if door is not None:
            door.metrics.rejected("overload")
        return response
