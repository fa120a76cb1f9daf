"""The Serve application: `Front` takes HTTP, `Engine` holds a vLLM with Heed in each of its replicas.

    serve run deploy/ray/heed.yaml

Requests cross from one to the other whole, and answers in parts as they are made, so that every route, status and
header is that of `heed serve`.
"""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response

from heed_server.api.errors import TooLargeError, error_response
from heed_server.ray_serve.affinity import affinity
from heed_server.ray_serve.asgi import Ask, Head, answered, asked, relayed
from heed_server.ray_serve.metrics import merged
from heed_server.settings import Settings

REPLICA_HEADER = b"x-heed-replica"
"""Which replica has answered, for logs and for whoever wonders where a prompt went."""

LOST = (RayActorError, RayServeException, StopAsyncIteration)
"""What the front sees of a replica that is gone, or takes no more; not what fails inside one."""

METRICS = Ask("GET", "/metrics", b"", (), b"", affinity(b""))


class Options(BaseModel):
    """`args` of the application in a Serve config file.

    arguments: what would follow `heed serve`, the same for each replica.
    """

    model_config = ConfigDict(extra="forbid")

    arguments: list[str] = Field(default_factory=list)


class Engine:
    """One vLLM with Heed, asked without a socket."""

    async def __init__(self, arguments: list[str]) -> None:  # type: ignore[misc]  # Ray awaits it
        # The other processes of the application do without an engine's modules, which take seconds to load.
        from heed_server.api.in_process import application

        self._running = AsyncExitStack()
        self._app, self._client = await self._running.enter_async_context(application(arguments))
        self._name: str = serve.get_replica_context().replica_id.unique_id

    async def answer(self, ask: Ask) -> AsyncGenerator[Head | bytes, None]:
        """The head of the answer, with this replica's name, and the body in parts as they are made."""
        mark = (REPLICA_HEADER, self._name.encode())
        async with aclosing(answered(self._app, ask)) as parts:
            async for part in parts:
                yield part.marked(mark) if isinstance(part, Head) else part

    async def metrics(self) -> tuple[str, str]:
        """The replica's name, and its page of metrics."""
        parts = [part async for part in answered(self._app, METRICS)]
        return self._name, b"".join(part for part in parts if isinstance(part, bytes)).decode()

    async def check_health(self) -> None:
        """Serve replaces a replica for which this raises."""
        await self._client.check_health()

    async def __del__(self) -> None:  # Serve awaits it when the replica has drained
        await self._running.aclose()


class Front:
    """Takes requests, and hands them on by what their cache blocks depend on."""

    def __init__(self, engine: DeploymentHandle) -> None:
        self._engine = engine.options(method_name="answer", stream=True)
        self._most_bytes = Settings.from_environment().max_body_bytes

    async def __call__(self, request: Request) -> Response:
        if request.url.path == METRICS.path:
            pages = await self._engine.broadcast("metrics").results_async()
            return Response(merged(pages), media_type="text/plain")
        try:
            ask = await asked(request, self._most_bytes)
        except TooLargeError as error:
            return error_response(error.detail, None, error.status_code)
        return await relayed(self._engine.remote(ask), LOST)


def build(options: Options) -> Application:
    """The application of a Serve config file; how many replicas, and on what, stands there too."""
    engine = serve.deployment(Engine).bind(options.arguments)
    return serve.deployment(Front).bind(engine)
