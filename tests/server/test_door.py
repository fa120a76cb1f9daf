"""The door without an engine: what it lets through to a stand-in for `generate`."""

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from vllm.sampling_params import SamplingParams

from heed_interventions import parse
from heed_interventions.method import CacheClass
from heed_interventions.resolve import Resolution
from heed_interventions.views import ModelView
from heed_kernels.edits import OPEN, Rows
from heed_kernels.evict import Evict, NormScore
from heed_server.api.activity import Activity
from heed_server.api.door import Door
from heed_server.api.errors import RefusedError
from heed_server.api.exchange import CURRENT, Exchange
from heed_server.metrics import Metrics
from heed_server.profiles.store import ProfileStore
from heed_server.settings import Settings

MODEL = ModelView(
    layers=2, query_heads=4, kv_heads=2, head_dim=8, max_length=2048, vision=False,
    unsupported=None, rotary=True,
)  # fmt: skip


def door(cache: tuple[int, int]) -> Door:
    reports: Any = None  # asked for when generation ends, which it does not here
    metrics = Metrics("cpu", CollectorRegistry())
    profiles = ProfileStore(None, None, MODEL)
    return Door(MODEL, Settings(), profiles, None, None, reports, metrics, Activity(), cache)


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
    door(cache).generate(lambda *given, **rest: calls.append(given), prompt, params, "id")
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
    resolution = Resolution((edit,), CacheClass.SHARED, None, 800, (), ())
    params = SamplingParams(max_tokens=10)
    standing = door((blocks, 32))
    if not refused:
        assert standing._bounded(params, resolution, 800) == (params, None)
        return
    with pytest.raises(RefusedError, match="24 blocks of 32 tokens") as refusal:
        standing._bounded(params, resolution, 800)
    assert refusal.value.parameter == "interventions.1"
