"""Whatever the door refuses or keeps waiting, no prompt comes to the engine with an image that it does not have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from tests.server.door_maker import door
from vllm.multimodal.inputs import MultiModalKwargsItem, MultiModalKwargsItems, PlaceholderRange
from vllm.sampling_params import SamplingParams

from heed_interventions import parse
from heed_server.api.errors import RefusedError
from heed_server.api.exchange import CURRENT, Exchange, RehearsalOver

PARAMS = SamplingParams(max_tokens=4)
COMPANION = [{"method": "vhr"}]
ABSENT = [{"method": "emphasis", "spans": [{"start": 90, "end": 99}]}]


class Both:
    """The two ends of vLLM: a renderer, which is its own cache of what it has handed out, and an engine.

    slow: what a twin waits for.
    """

    def __init__(self) -> None:
        self.handed_out: set[str] = set()
        self.stored: set[str] = set()
        self.sent: list[str] = []
        self.slow = asyncio.Event()
        self.broken = False
        self.renderer = SimpleNamespace(mm_processor_cache=self)
        self.engine_core = SimpleNamespace(core_engines=[b"0"])
        self.output_processor = SimpleNamespace(process_outputs=None)
        self.generate: Any = self._generate
        entrance = door()
        entrance.model = replace(entrance.model, vision=True)
        nothing: Any = asyncio.get_running_loop().create_future()
        nothing.set_result({})
        entrance._reports = SimpleNamespace(collect=lambda report: nothing)  # type: ignore[assignment]
        entrance.stand_before(self)

    def invalidate(self, item_hash: str) -> None:
        self.handed_out.discard(item_hash)

    def rendered(self, *images: str) -> dict[str, Any]:
        """A prompt with these images, whose data goes with the first that has them."""
        items = [None if name in self.handed_out else MultiModalKwargsItem() for name in images]
        self.handed_out |= set(images)
        places = [PlaceholderRange(offset=5 + 10 * n, length=5) for n in range(len(images))]
        return {
            "prompt_token_ids": [1] * 40,
            "mm_placeholders": {"image": places},
            "mm_hashes": {"image": list(images)},
            "mm_kwargs": MultiModalKwargsItems({"image": items}),
        }

    async def _generate(
        self, prompt: Any, params: Any, name: str, **rest: Any
    ) -> AsyncGenerator[Any]:
        if name.startswith("heed-twin-"):
            await self.slow.wait()
            if self.broken:
                raise ValueError("the engine does not want it")
        for item_hash, item in zip(
            prompt.get("mm_hashes", {}).get("image", ()),
            prompt.get("mm_kwargs", {}).get("image", ()),
            strict=True,
        ):
            assert item is not None or item_hash in self.stored, "a cache miss"
            self.stored.add(item_hash)
        self.sent.append(name)
        output = SimpleNamespace(index=0, token_ids=[7], finish_reason="length")
        yield SimpleNamespace(outputs=[output], num_cached_tokens=0)

    async def ask(
        self, name: str, prompt: Any, edits: Any = None, *, rehearsal: bool = False
    ) -> None:
        exchange = Exchange(parse(edits), "request", asked=True) if edits else None
        if exchange is not None:
            exchange.rehearsal = rehearsal
        token = CURRENT.set(exchange)
        try:
            answer = self.generate(prompt, PARAMS, name)
        finally:
            CURRENT.reset(token)
        async for _ in answer:
            pass


def test_a_prompt_that_is_refused_takes_no_image_with_it() -> None:
    async def run() -> None:
        both = Both()
        await both.ask("first", both.rendered("old"))
        with pytest.raises(RefusedError):
            await both.ask("refused", both.rendered("old", "new"), ABSENT)
        await both.ask("plain", both.rendered("old", "new"))
        assert both.sent == ["first", "plain"]

    asyncio.run(run())


@pytest.mark.parametrize("edits", [COMPANION, ABSENT], ids=["taken", "refused"])
def test_a_rehearsal_takes_no_image_with_it(edits: Any) -> None:
    async def run() -> None:
        both = Both()
        with pytest.raises((RehearsalOver, RefusedError)):
            await both.ask("rehearsed", both.rendered("new"), edits, rehearsal=True)
        await both.ask("plain", both.rendered("new"))
        assert both.sent == ["plain"]

    asyncio.run(run())


@pytest.mark.parametrize("broken", [False, True], ids=["twin runs", "twin fails"])
def test_others_get_the_images_of_a_prompt_that_waits_for_its_twin(broken: bool) -> None:
    async def run() -> None:
        both = Both()
        both.broken = broken
        waiting = asyncio.create_task(both.ask("edited", both.rendered("new"), COMPANION))
        rendered = both.rendered("new")
        assert rendered["mm_kwargs"]["image"] == [None]
        await asyncio.sleep(0)
        await both.ask("plain", rendered)
        assert both.sent == ["plain"]
        both.slow.set()
        await asyncio.wait([waiting])
        assert (waiting.exception() is not None) == broken
        await both.ask("later", both.rendered("new"))
        assert [name for name in both.sent if "twin" not in name] == (
            ["plain", "later"] if broken else ["plain", "edited", "later"]
        )

    asyncio.run(run())


def test_a_prompt_waits_for_its_twin_with_images_that_the_engine_has() -> None:
    async def run() -> None:
        both = Both()
        both.slow.set()
        await both.ask("first", both.rendered("old"))
        await both.ask("edited", both.rendered("old", "new"), COMPANION)
        await both.ask("again", both.rendered("new", "old"), COMPANION)
        assert [name for name in both.sent if "twin" not in name] == ["first", "edited", "again"]

    asyncio.run(run())


def test_an_image_that_went_with_no_request_comes_with_the_next() -> None:
    async def run() -> None:
        both = Both()
        waiting = asyncio.create_task(both.ask("edited", both.rendered("new"), COMPANION))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        await both.ask("plain", both.rendered("new"))
        assert both.sent == ["plain"]

    asyncio.run(run())
