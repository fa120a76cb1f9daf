"""Endpoint plug-in seam (`vllm.endpoint_plugins`): Heed's routes, and its door in front of the engine."""

import asyncio
import signal
from argparse import Namespace
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, ClassVar

from fastapi import FastAPI
from starlette.datastructures import State
from vllm.logger import init_logger

from heed_server.api import errors, messages_route, profile_routes, responses_route, routes
from heed_server.api.activity import Activity
from heed_server.api.body_limit import BodyLimit
from heed_server.api.cache_room import CacheRoom
from heed_server.api.context_length import let_requests_differ
from heed_server.api.door import Door
from heed_server.api.exchange import Report
from heed_server.api.leaving import (
    drain_before_shutdown,
    leave_with_the_engine,
    note_failures,
)
from heed_server.api.open_requests import Entrance, OpenRequests
from heed_server.api.other_doors import OtherDoors
from heed_server.api.playground_routes import playground_router
from heed_server.api.reports import ReportCollector, of_workers
from heed_server.api.request_spans import spans_of
from heed_server.api.served_model import (
    DESCRIBE,
    no_support,
    profiles_for,
    runs_without_heed,
    scratch_table,
    served_identity,
    support_of,
    view_of,
)
from heed_server.attention import routes as attention_routes
from heed_server.attention.service import Diagnostics
from heed_server.engine.model.model_support import ModelSupport
from heed_server.metrics import Metrics
from heed_server.profiles.store import ProfileStore
from heed_server.settings import Settings

logger = init_logger("vllm.heed.api")

POLL_SECONDS = 2.0
ALIVE_SECONDS = 0.5
STOPPING = "Server shutting down"
"""What vLLM's engines answer to every call while they let their last requests end: `v1/engine/core.py`."""


class HeedEndpointPlugin:
    """See `vllm.plugins.endpoint_plugins.interface.EndpointPlugin`."""

    name: ClassVar[str] = "heed"
    required_tasks: ClassVar[None] = None
    """Every server: one that only embeds has to refuse interventions."""

    def __init__(self) -> None:
        self._generates = False
        self._requests = OpenRequests()

    def attach_router(self, app: FastAPI) -> None:
        """Routes with vLLM's paths replace vLLM's own; a server without them only refuses."""
        self._generates = "/v1/completions" in {getattr(route, "path", "") for route in app.routes}
        app.add_middleware(OtherDoors, **({} if self._generates else {"carrying": ()}))
        app.add_middleware(BodyLimit)
        # The last one added is the first to see a request.
        settings = Settings.from_environment()
        self._requests = OpenRequests(settings.max_open_requests)
        app.add_middleware(Entrance, requests=self._requests)
        if not self._generates:
            return
        for module in (routes, messages_route, responses_route, profile_routes):
            app.include_router(module.router)
        if settings.attention:
            app.include_router(attention_routes.router)
        if settings.playground:
            app.include_router(playground_router())
        errors.install(app)

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Ask the workers what the model is, and put the door in front of the engine."""
        if engine_client is None:
            return
        note_failures(engine_client)
        drain_before_shutdown(engine_client, self._requests)
        if not self._generates:
            return
        engines = Engines(engine_client)
        support = await engines.describe()
        usable = support.backend if support.unsupported is None else None
        metrics = Metrics(backend=usable or "none")
        activity = Activity()
        settings = Settings.from_environment()
        view = view_of(support, engine_client.model_config)
        identity = await asyncio.to_thread(served_identity, engine_client.model_config, support)
        profiles = profiles_for(settings, identity, view)
        state.heed_door = Door(
            model=view,
            settings=settings,
            profiles=profiles,
            tokenizer=engine_client.renderer.tokenizer,
            table=scratch_table(support),
            reports=ReportCollector(engines.reports),
            metrics=metrics,
            activity=activity,
            cache=CacheRoom(support.kv_blocks, support.block_size),
        )
        state.heed_door.stand_before(engine_client, spans_of(engine_client))
        state.heed_diagnostics = Diagnostics(engine_client, state.heed_door, engines.inspection)
        if state.heed_door.settings.max_streaming_length is not None:
            let_requests_differ(engine_client.model_config)
        if settings.profiles is not None:
            reload_on_hangup(profiles)
        state.heed_poll = asyncio.create_task(engines.poll(activity, metrics))
        state.heed_leave = asyncio.create_task(leave_with_the_engine(engine_client, state))
        logger.info(
            "Heed: %s",
            f"edited requests are refused: {support.unsupported}"
            if support.unsupported
            else f"every request can edit {support.layers} layers of {support.query_heads} heads",
        )


class StoppedError(Exception):
    """The engines are being stopped, and take no calls."""


class Engines:
    """Calls into the workers of every engine behind this API process."""

    def __init__(self, engine_client: Any) -> None:
        self._client = engine_client
        self._stopped = False

    async def call(self, method: str, *arguments: Any) -> list[list[Any]]:
        """Answers by engine and worker.

        `collective_rpc` would answer for the first engine only under data parallelism.

        Raises:
            StoppedError: the engines are being stopped. vLLM refuses calls then, and never answers
                one that comes after the last request.
        """
        if self._stopped:
            raise StoppedError
        core = self._client.engine_core
        asked = asyncio.ensure_future(
            core.call_utility_all_async("collective_rpc", method, None, arguments, None)
        )
        try:
            while not asked.done() and not self._client.errored:
                await asyncio.wait([asked], timeout=ALIVE_SECONDS)
            self._stopped = not asked.done() or str(asked.exception()) == STOPPING
        finally:
            asked.cancel()
        if self._stopped:
            raise StoppedError
        answers: list[list[Any]] = asked.result()
        return answers

    async def describe(self) -> ModelSupport:
        """The model as the first worker sees it; a worker without Heed refuses edits."""
        try:
            return support_of((await self.call(DESCRIBE))[0][0])
        except Exception as error:
            if not runs_without_heed(error):
                raise
            logger.warning("Heed: the workers do not know it: %s", error)
            return no_support(self._client.model_config.max_model_len)

    async def reports(self, report_ids: list[str]) -> Iterable[Mapping[str, Mapping[int, Report]]]:
        """Reports from each engine: its workers all run the same rows, and any may have failed.

        None from engines that are being stopped: the answer is whole, and its report says what is missing.
        """
        try:
            return [of_workers(workers) for workers in await self.call("heed_reports", report_ids)]
        except StoppedError:
            return []

    async def inspection(self, report_id: str) -> list[list[Any]]:
        """What each engine's workers measured for one engine request, None where it did not run."""
        return await self.call("heed_inspection", report_id)

    async def poll(self, activity: Activity, metrics: Metrics) -> None:
        """Keep the worker gauges fresh while requests are edited, until the engine is gone."""
        while not self._client.errored:
            await activity.wait()
            await asyncio.sleep(POLL_SECONDS)
            try:
                told = [workers[0] for workers in await self.call("heed_gauges")]
            except StoppedError:
                return
            except Exception as error:
                logger.debug("Heed: the poll of the workers failed: %s", error)
                continue
            metrics.polled(told)


def reload_on_hangup(profiles: ProfileStore) -> None:
    """Read the profiles again on SIGHUP, where this process can be told so."""
    with suppress(NotImplementedError, RuntimeError, ValueError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, profiles.reload)
