"""The door without an engine: what it lets through to a stand-in for `generate`."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from tests.server.door_maker import door
from vllm.multimodal.inputs import PlaceholderRange
from vllm.sampling_params import SamplingParams

from heed_interventions import parse
from heed_interventions.errors import InterventionError
from heed_kernels.edits import OPEN, Rows
from heed_kernels.evict import Evict, NormScore
from heed_server.api.cache_room import CacheRoom
from heed_server.api.errors import RefusedError
from heed_server.api.exchange import CURRENT, EngineRequest, Exchange
from heed_server.api.reports import assemble
from heed_server.engine.payload import RESERVED_KEY


@pytest.fixture
def streaming() -> Iterator[Exchange]:
    raw = [{"method": "streaming_llm", "sinks": 4, "window": 400}]
    exchange = Exchange(parse(raw), "request", asked=True)
    token = CURRENT.set(exchange)
    yield exchange
    CURRENT.reset(token)


def generate(cache: tuple[int, int], tokens: int, max_tokens: int) -> list[Any]:
    """Calls of the stock `generate`, for a prompt of so many tokens."""
    calls: list[Any] = []
    params = SamplingParams(max_tokens=max_tokens)
    prompt = {"prompt_token_ids": [1] * tokens}
    door(CacheRoom(*cache)).generate(
        lambda *given, **rest: calls.append(given), prompt, params, "id"
    )
    return calls


def test_a_window_that_the_cache_can_never_hold_is_refused(streaming: Exchange) -> None:
    with pytest.raises(RefusedError, match="15 blocks of 32 tokens") as refusal:
        generate((14, 32), 900, 100)
    assert refusal.value.parameter == "interventions.0.window"


@pytest.mark.parametrize(
    ("cache", "tokens"),
    [((15, 32), 900), ((14, 32), 200), ((0, 0), 900)],
    ids=["it fits", "the request ends before it is full", "the cache is not known"],
)
def test_other_windows_go_on(streaming: Exchange, cache: tuple[int, int], tokens: int) -> None:
    assert len(generate(cache, tokens, 100)) == 1


@pytest.mark.parametrize(("blocks", "refused"), [(24, True), (25, False), (0, False)])
def test_an_eviction_from_a_prompt_that_the_cache_can_never_hold_is_refused(
    blocks: int, refused: bool
) -> None:
    edit = Evict(NormScore(), None, (200,), 200, 4, 8, False, 1, False, Rows(800, OPEN), source=1)
    room = CacheRoom(blocks, 32)
    if not refused:
        room.check(edit, 800, 810)
        return
    with pytest.raises(InterventionError, match="24 blocks of 32 tokens") as refusal:
        room.check(edit, 800, 810)
    assert refusal.value.param == "interventions.1"


@pytest.mark.parametrize(("blocks", "status"), [(14, "skipped"), (15, "applied")])
def test_a_default_window_that_the_cache_can_never_hold_is_left_out_alone(
    blocks: int, status: str
) -> None:
    raw = [
        {"method": "streaming_llm", "sinks": 4, "window": 400},
        {"method": "zerotuning", "gamma": 2},
    ]
    exchange = Exchange(parse(raw), "default", asked=False)
    prompt = {"prompt_token_ids": [1] * 900}
    resolution, _ = door(CacheRoom(blocks, 32)).resolve(exchange, prompt, 100)
    streaming, zerotuning = resolution.reports
    assert (streaming["status"], zerotuning["status"]) == (status, "applied")
    assert ("15 blocks of 32 tokens" in streaming.get("reason", "")) == (status == "skipped")
    assert {edit.source for edit in resolution.edits} == ({1} if status == "skipped" else {0, 1})


@pytest.mark.parametrize(
    ("max_tokens", "status"), [(None, "skipped"), (100, "skipped"), (40, "applied")]
)
def test_a_window_is_looked_at_where_the_request_can_outgrow_the_cache(
    max_tokens: int | None, status: str
) -> None:
    raw = [{"method": "streaming_llm", "sinks": 4, "window": 400}]
    exchange = Exchange(parse(raw), "default", asked=False)
    prompt = {"prompt_token_ids": [1] * 400}
    resolution, _ = door(CacheRoom(14, 32)).resolve(exchange, prompt, max_tokens)
    assert resolution.reports[0]["status"] == status


def ask_with_a_picture(broken: bool) -> tuple[list[str], EngineRequest]:
    """What the engine is asked for under a method that needs a twin, in order."""
    calls: list[str] = []

    async def stock(prompt: Any, params: Any, name: str, **rest: Any) -> AsyncGenerator[Any]:
        calls.append("twin" if name.startswith("heed-twin-") else name)
        if broken:
            raise ValueError("the engine does not want it")
        output = SimpleNamespace(index=0, token_ids=[7], finish_reason="length")
        yield SimpleNamespace(outputs=[output], num_cached_tokens=16)

    async def ask() -> EngineRequest:
        entrance = door()
        entrance.model = replace(entrance.model, vision=True)
        nothing: Any = asyncio.get_running_loop().create_future()
        nothing.set_result({})
        entrance._reports = SimpleNamespace(collect=lambda report: nothing)  # type: ignore[assignment]
        client = SimpleNamespace(
            generate=stock,
            renderer=SimpleNamespace(mm_processor_cache=None),
            engine_core=SimpleNamespace(core_engines=[b"0"]),
            output_processor=SimpleNamespace(process_outputs=None),
        )
        entrance.stand_before(client)
        exchange = Exchange(parse([{"method": "vhr"}]), "request", asked=True)
        image = PlaceholderRange(offset=5, length=20)
        prompt = {"prompt_token_ids": [1] * 40, "mm_placeholders": {"image": [image]}}
        token = CURRENT.set(exchange)
        try:
            generator = client.generate(prompt, SamplingParams(max_tokens=4), "id")
        finally:
            CURRENT.reset(token)
        if broken:
            with pytest.raises(ValueError, match="does not want it"):
                await anext(generator)
        else:
            async for _ in generator:
                pass
        return exchange.engine_requests[0]

    return calls, asyncio.run(ask())


def test_a_twin_runs_before_its_request_and_its_cost_is_reported() -> None:
    calls, request = ask_with_a_picture(broken=False)
    assert calls == ["twin", "id"]
    (report,) = assemble(request, 0, {})
    assert report["companion"] == {"prompt_tokens": 20, "cached_tokens": 16}


def test_where_a_twin_fails_its_request_never_begins() -> None:
    calls, request = ask_with_a_picture(broken=True)
    assert calls == ["twin"]
    assert request.twin_cached is None


def ask_adapter(source: Any, **fields: Any) -> list[Any]:
    """Calls of the stock `generate`, for an adapter and a list of one intervention."""
    calls: list[Any] = []
    raw = [{"method": "zerotuning", "gamma": 2.0, **fields}]
    token = CURRENT.set(Exchange(parse(raw), source, asked=source == "request"))
    try:
        door(CacheRoom(24, 32)).generate(
            lambda *given, **rest: calls.append((given[1], rest)),
            {"prompt_token_ids": [1] * 40},
            SamplingParams(max_tokens=4),
            "id",
            lora_request=SimpleNamespace(lora_name="adapted"),
        )
    finally:
        CURRENT.reset(token)
    return calls


def test_an_adapter_does_not_get_heads_that_were_found_without_it() -> None:
    with pytest.raises(RefusedError, match=r"without an adapter.*adapted") as refusal:
        ask_adapter("request", profile="sentiment")
    assert refusal.value.parameter == "interventions.0.profile"


def test_an_adapter_gets_parameters_that_were_written_out() -> None:
    ((params, rest),) = ask_adapter("request")
    assert RESERVED_KEY in params.extra_args and rest["lora_request"].lora_name == "adapted"


def test_defaults_with_a_profile_are_left_out_for_an_adapter() -> None:
    ((params, _),) = ask_adapter("default", profile="sentiment")
    assert not params.extra_args
