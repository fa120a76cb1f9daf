"""An engine in this very process whose requests evict, run as a script: what only its scheduler can tell.

Arguments as those of `streaming_engine.py`.
"""

import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streaming_engine import BLOCK, Engine, prompt

KINDS = ("window", "heads", "again")
KEEP = 0.25
WINDOW = 32

PROMPT, ANSWER, REQUESTS = 800, 120, 6
POOL = 3 * -(-(PROMPT + ANSWER) // BLOCK)
"""Blocks of three such requests that keep everything."""
STREAMING = {"sinks": 4, "window": 256}


def evict(kind: str, length: int, keep: float = KEEP) -> Any:
    """window: SnapKV. heads: as Ada-KV. again: as H2O, over all rows and on through the answer."""
    from heed_kernels.edits import OPEN, Rows
    from heed_kernels.evict import ColumnScore, Evict, HeadShare, WindowScore

    count = max(int(keep * length), WINDOW)
    again = kind == "again"
    return Evict(
        score=ColumnScore() if again else WindowScore(WINDOW, kernel=5),
        share=HeadShare(0.2) if kind == "heads" else None,
        counts=(count,) * 6,
        most=min(length, 3 * count) if kind == "heads" else count,
        sinks=4 if again else 0,
        recent=8 if again else WINDOW,
        again=again,
        together=1 if again else WINDOW,
        every_row=again,
        rows=Rows(length, OPEN),
        source=0,
    )


class EvictingEngine(Engine):
    """Requests are (prompt, tokens), or (prompt, tokens, kind of eviction or window of streaming)."""

    def add(self, prompt: list[int], tokens: int, kind: str | dict[str, Any] | None = None) -> str:
        if not isinstance(kind, str):
            return super().add(prompt, tokens, kind)
        from vllm import SamplingParams

        from heed_server.engine.payload import RESERVED_KEY, Payload, pack

        self.number += 1
        name = f"r{self.number}"
        length = len(prompt)
        payload = Payload(name, 1, length, length, (evict(kind, length),), detailed=(0,))
        parameters = SamplingParams(
            temperature=0, max_tokens=tokens, logprobs=1, ignore_eos=True,
            extra_args={RESERVED_KEY: pack(payload)},
        )  # fmt: skip
        self.engine.add_request(name, {"prompt_token_ids": prompt}, parameters)
        return name

    def fresh(self, arrivals: list[tuple[int, tuple[Any, ...]]], **more: Any) -> dict[str, Any]:
        """`run` with an empty prefix cache, and with the reports of those that evict."""
        self.scheduler.reset_prefix_cache()
        found = self.run(arrivals, **more)
        order = sorted(arrivals, key=lambda pair: pair[0])
        found["reports"] = [
            self.report(name) if len(request) > 2 and answer else None
            for name, answer, (_, request) in zip(
                found["names"], found["answers"], order, strict=True
            )
        ]
        return found

    def in_pool(self, blocks: int, arrivals: list[Any], **more: Any) -> dict[str, Any]:
        """The same in a smaller pool."""
        self.resize(blocks)
        try:
            return self.fresh(arrivals, **more)
        finally:
            self.resize(self.blocks + len(self.held))


def neighbours(engine: EvictingEngine, schedules: int) -> dict[str, Any]:
    """Plain requests with evicting ones among them, and without."""
    plain = [
        (0, (prompt(300, 1), 40)),
        (2, ([*prompt(200, 50), *prompt(30, 3)], 40)),
        (9, (prompt(90, 6), 60)),
    ]
    evicting = [
        (0, (prompt(400, 2), 60, "window")),
        (3, ([*prompt(200, 50), *prompt(200, 4)], 50, "heads")),
        (5, (prompt(150, 5), 70, "again")),
    ]
    both = sorted([*plain, *evicting], key=lambda pair: pair[0])
    among = engine.fresh(both)
    small = engine.in_pool(engine_peak(among) // 2, both)
    return {
        "places": [both.index(pair) for pair in plain],
        "alone": engine.fresh(plain),
        "among": among,
        "small": small,
    }


def engine_peak(found: dict[str, Any]) -> int:
    return int(found["peak"])


def concurrency(engine: EvictingEngine, schedules: int) -> dict[str, Any]:
    """Equal requests, all at once, in a pool that holds three plain ones: plain, streaming, and with
    `snapkv` that keeps a quarter."""
    edits: dict[str, tuple[Any, ...]] = {
        "plain": (),
        "streaming": (STREAMING,),
        "snapkv": ("window",),
    }
    runs = {
        name: engine.in_pool(
            POOL, [(0, (prompt(PROMPT, i), ANSWER, *edit)) for i in range(REQUESTS)]
        )
        for name, edit in edits.items()
    }
    for found in runs.values():
        del found["answers"], found["names"]
        for report in found["reports"]:
            if report is not None:
                report.pop("kept", None)
    return runs


def sharing(engine: EvictingEngine, schedules: int) -> dict[str, Any]:
    """One prompt: plain, evicting, plain again, then two at once; and evicting with an empty cache."""
    text = prompt(300, 11)
    alone = engine.fresh([(0, (text, 40, "window"))])
    requests = [(text, 40), (text, 40, "window"), (text, 40)]
    in_turn = engine.fresh([(45 * i, request) for i, request in enumerate(requests)])
    at_once = engine.fresh([(0, (text, 40)), *((8, (text, 40, "window")) for _ in range(2))])
    return {"alone": alone, "in_turn": in_turn, "at_once": at_once}


def replays(engine: EvictingEngine, schedules: int) -> dict[str, Any]:
    """The same requests left alone, and preempted all at once while they decode."""
    requests = [
        (0, (prompt(300, 21), 50, "window")),
        (0, (prompt(150, 22), 50, "again")),
        (0, (prompt(240, 23), 50, "heads")),
    ]
    return {
        "alone": engine.fresh(requests),
        "preempted": engine.fresh(requests, preempt=[15, 30]),
    }


def schedules(engine: EvictingEngine, schedules: int) -> list[dict[str, Any]]:
    """Random arrivals and aborts in small pools; then all of it in a large one, and the plain requests
    alone in the small one."""
    found = []
    for seed in range(schedules):
        chance = random.Random(seed)
        arrivals = []
        for i in range(chance.randint(3, 7)):
            kind = chance.choice([None, None, "window", "heads", "again"])
            text = prompt(chance.randint(40, 320), 10 * seed + i)
            if chance.random() < 0.4:
                text = [*prompt(120, seed), *text[:200]]
            request = (text, 80) if kind is None else (text, 80, kind)
            arrivals.append((chance.randrange(20), request))
        arrivals.sort(key=lambda pair: pair[0])
        aborts = {chance.randrange(60): chance.randrange(len(arrivals)) for _ in range(2)}
        blocks = chance.randint(14, 20)
        plain = [place for place, (_, request) in enumerate(arrivals) if len(request) == 2]
        found.append(
            {
                "plain": plain,
                "small": engine.in_pool(blocks, arrivals, aborts=aborts),
                "large": engine.fresh(arrivals),
                "without": engine.in_pool(
                    blocks,
                    [arrivals[place] for place in plain],
                    aborts={
                        step: plain.index(place) for step, place in aborts.items() if place in plain
                    },
                ),
            }
        )
    return found


def kinds(engine: EvictingEngine, schedules: int) -> dict[str, Any]:
    """One request of each kind."""
    requests = [(0, (prompt(200, 40 + i), 40, kind)) for i, kind in enumerate(KINDS)]
    return engine.fresh(requests)


EXPERIMENTS: dict[str, Callable[[EvictingEngine, int], Any]] = {
    run.__name__: run for run in (neighbours, concurrency, sharing, replays, schedules, kinds)
}


def main() -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    job = json.loads(Path(sys.argv[1]).read_text())
    engine = EvictingEngine(job["model"], pool=200, ranks=job["ranks"])
    found = {name: EXPERIMENTS[name](engine, job["schedules"]) for name in job["experiments"]}
    found["idle"] = engine.idle
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
