"""One HTTP request with interventions, from its parsed field to its reports."""

from asyncio import Future
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from heed_interventions.method import Method
from heed_interventions.resolve import Resolution, Source
from heed_kernels.inspection import Inspection
from heed_server.api.errors import RefusedError

Report = dict[str, Any]


@dataclass
class EngineRequest:
    """One prompt of the request, as it went through the engine's door.

    completion_tokens: tokens sampled so far, by choice.
    ran: what the workers ran, by choice; None where nothing had to run edited. Set at the door,
        resolved when generation has ended.
    report_id: under which the workers keep what they ran; None where nothing had to run edited.
    twin_cached: tokens of its twin's prompt that came out of the prefix cache, once there was one.
    """

    resolution: Resolution
    prompt_length: int
    completion_tokens: dict[int, int] = field(default_factory=dict)
    ran: "Future[dict[int, Report]] | None" = None
    report_id: str | None = None
    twin_cached: int | None = None


@dataclass
class Exchange:
    """What a client asked for and what became of it.

    asked: whether the client itself sent a list with something in it.
    skipped: why the server's defaults are left out of this request, if they are.
    rehearsal: whether the request is only to find out what it would do.
    inspection: what is to be measured of the attention, if anything is.
    refusal: why the door did not let it through, where it did not.
    """

    methods: Sequence[Method]
    source: Source
    asked: bool
    skipped: str | None = None
    rehearsal: bool = False
    inspection: Inspection | None = None
    refusal: RefusedError | None = None
    engine_requests: list[EngineRequest] = field(default_factory=list)


class RehearsalOver(Exception):
    """A rehearsed request has got as far as the engine, and ends there."""


CURRENT: ContextVar[Exchange | None] = ContextVar("heed_exchange", default=None)
"""The exchange whose handler is running; None on every route that carries no interventions."""
