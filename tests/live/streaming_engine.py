"""An engine with Heed in this very process, run as a script: what only its scheduler can tell.

Arguments: a file to read, `{"model": directory, "experiments": [names], "schedules": n}`, and a file
to write, an object with the experiments' names. Log-probabilities are `float.hex()`.
"""

import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

BLOCK, CHUNK = 32, 128
SHORT = {"sinks": 4, "window": 64}


class Engine:
    """vLLM's engine, a step at a time."""

    def __init__(self, model: str, pool: int, ranks: int = 1) -> None:
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        arguments = EngineArgs(
            model=model, dtype="float32", enforce_eager=True, max_model_len=2048, block_size=BLOCK,
            max_num_batched_tokens=CHUNK, max_num_seqs=16, num_gpu_blocks_override=pool + 1,
            kv_cache_memory_bytes=1 << 28, tensor_parallel_size=ranks,
        )  # fmt: skip
        self.engine = LLMEngine.from_engine_args(arguments)
        self.scheduler = self.engine.engine_core.engine_core.scheduler
        self.pool = self.scheduler.kv_cache_manager.block_pool
        self.blocks = pool
        self.number = 0

    def resize(self, blocks: int) -> None:
        """Take blocks away, or give them back: the pool then has `blocks`."""
        assert self.idle
        self.scheduler.reset_prefix_cache()
        if blocks < self.blocks:
            self.held = [
                *getattr(self, "held", ()),
                *self.pool.get_new_blocks(self.blocks - blocks),
            ]
        else:
            back = blocks - self.blocks
            self.pool.free_blocks(self.held[len(self.held) - back :])
            self.held = self.held[: len(self.held) - back]
        self.pool.num_gpu_blocks += blocks - self.blocks
        self.blocks = blocks

    @property
    def idle(self) -> bool:
        return self.pool.get_num_free_blocks() == self.blocks

    def add(self, prompt: list[int], tokens: int, window: dict[str, Any] | None = None) -> str:
        """`window`: the fields of `VisibleKeys` but its source; None: a plain request."""
        from vllm import SamplingParams

        from heed_kernels.edits import VisibleKeys
        from heed_server.engine.payload import RESERVED_KEY, Payload, pack

        self.number += 1
        name = f"r{self.number}"
        parameters = SamplingParams(temperature=0, max_tokens=tokens, logprobs=1, ignore_eos=True)
        request: dict[str, Any] = {"prompt_token_ids": prompt}
        if window is not None:
            edit = VisibleKeys(**{"rolling": True, **window}, source=0)
            payload = Payload(name, 1, len(prompt), None, (edit,))
            parameters.extra_args = {RESERVED_KEY: pack(payload)}
            request["cache_salt"] = json.dumps(window)
        self.engine.add_request(name, request, parameters)
        return name

    def report(self, name: str) -> dict[str, Any]:
        """What the worker keeps for the API process."""
        taken = self.engine.collective_rpc("heed_reports", args=([name],))[0]
        report: dict[str, Any] = taken[name][0]["interventions"][0]
        return report

    def run(
        self,
        arrivals: list[tuple[int, tuple[Any, ...]]],
        aborts: dict[int, int] | None = None,
        preempt: Sequence[int] = (),
    ) -> dict[str, Any]:
        """Requests by the step in which they arrive; aborts: arrival's place by step; preempt: steps
        before which all running requests are."""
        names: list[str] = []
        answers: dict[str, Any] = {}
        waiting = sorted(arrivals, key=lambda pair: pair[0])
        step = peak = running = decoding = 0
        preempted: dict[str, int] = {}
        while waiting or self.engine.has_unfinished_requests():
            while waiting and waiting[0][0] <= step:
                names.append(self.add(*waiting.pop(0)[1]))
            place = (aborts or {}).get(step)
            if place is not None and place < len(names):
                self.engine.abort_request([names[place]])
            if step in preempt:
                self.scheduler.reset_prefix_cache(reset_running_requests=True)
            for output in self.engine.step():
                if output.finished:
                    choice = output.outputs[0]
                    answers[output.request_id] = {
                        "tokens": list(choice.token_ids),
                        "logprobs": [
                            row[token].logprob.hex()
                            for token, row in zip(choice.token_ids, choice.logprobs, strict=True)
                        ],
                    }
            peak = max(peak, self.blocks - self.pool.get_num_free_blocks())
            running = max(running, len(self.scheduler.running))
            decoding = max(decoding, sum(map(is_decoding, self.scheduler.running)))
            for request in self.scheduler.requests.values():
                preempted[request.request_id] = request.num_preemptions
            step += 1
        return {
            "answers": [answers.get(name) for name in names],
            "names": names,
            "steps": step,
            "peak": peak,
            "running": running,
            "decoding": decoding,
            "preemptions": sum(preempted.values()),
            "idle": self.idle,
        }


def is_decoding(request: Any) -> bool:
    """Whether its whole prompt has been computed."""
    return bool(request.num_computed_tokens >= request.num_prompt_tokens)


def prompt(length: int, seed: int) -> list[int]:
    own = random.Random(seed)
    return [1, *(own.randrange(10, 2000) for _ in range(length - 1))]


def crowd() -> list[tuple[int, tuple[Any, ...]]]:
    """Plain requests among streaming ones, of both position modes, some with a prefix in common."""
    original = {**SHORT, "rolling": False}
    shared = prompt(200, 50)
    return [
        (0, (prompt(300, 1), 40)),
        (0, (prompt(700, 2), 60, SHORT)),
        (2, ([*shared, *prompt(30, 3)], 40)),
        (3, (prompt(600, 4), 60, original)),
        (5, ([*shared, *prompt(400, 5)], 30, SHORT)),
        (9, (prompt(90, 6), 60)),
        (14, ([*shared, *prompt(300, 7)], 30, SHORT)),
    ]


def keeping(engine: Engine, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The same with nothing freed before its request ends."""
    from heed_server.engine.scheduling.kv_release import ReleaseMixin

    release, ReleaseMixin._release = ReleaseMixin._release, lambda *_: None
    try:
        engine.scheduler.reset_prefix_cache()
        return run()
    finally:
        ReleaseMixin._release = release


def neighbours(engine: Engine, schedules: int) -> dict[str, Any]:
    """A mixed batch with blocks freed, with all of them kept, and with freed ones soon somebody else's."""
    freed = engine.run(crowd())
    freed["reports"] = [engine.report(freed["names"][i]) for i in (1, 3, 4, 6)]
    engine.resize(freed["peak"] + 1)
    try:
        reused = engine.run(crowd())
    finally:
        engine.resize(engine.blocks + len(engine.held))
    return {"reused": reused, "freed": freed, "kept": keeping(engine, partial(engine.run, crowd()))}


def longer_than_the_pool(engine: Engine, schedules: int) -> dict[str, Any]:
    """A prompt of 1,500 tokens in a pool of 20 blocks, beside a plain request, and in a large one."""
    arrivals = [(0, (prompt(80, 1), 40)), (1, (prompt(1500, 2), 100, SHORT))]
    large = engine.run(arrivals)
    engine.resize(20)
    try:
        small = engine.run(arrivals)
    finally:
        engine.resize(engine.blocks + len(engine.held))
    return {"large": large, "small": small}


def schedules(engine: Engine, schedules: int) -> list[dict[str, Any]]:
    """Random arrivals and aborts in small pools; then all of it in a large one, with nothing freed."""
    found = []
    for seed in range(schedules):
        chance = random.Random(seed)
        arrivals = []
        for i in range(chance.randint(3, 7)):
            window = chance.choice(
                [None, SHORT, {**SHORT, "rolling": False}, {"sinks": 0, "window": 40}]
            )
            length = chance.randint(20, 320 if window is None else 700)
            arrivals.append((chance.randrange(20), (prompt(length, 10 * seed + i), 80, window)))
        arrivals.sort(key=lambda pair: pair[0])
        aborts = {chance.randrange(60): chance.randrange(len(arrivals)) for _ in range(2)}
        engine.resize(chance.randint(13, 16))
        try:
            small = engine.run(arrivals, aborts)
        finally:
            engine.resize(engine.blocks + len(engine.held))
        found.append({"small": small, "large": keeping(engine, partial(engine.run, arrivals))})
    return found


EXPERIMENTS: dict[str, Callable[[Engine, int], Any]] = {
    run.__name__: run for run in (neighbours, longer_than_the_pool, schedules)
}


def main() -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    job = json.loads(Path(sys.argv[1]).read_text())
    engine = Engine(job["model"], pool=200)
    found = {name: EXPERIMENTS[name](engine, job["schedules"]) for name in job["experiments"]}
    found["idle"] = engine.idle
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
