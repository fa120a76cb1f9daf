"""Heed's schedulers with vLLM's real KV cache manager, over a pool of numbers in place of a model.

Each token's "key" is a number made of its request's salt and all tokens up to it. A made-up worker
writes and reads them through the block numbers that the scheduler sent, as a real one does: it is
never told what was freed, and checks that every key which a row sees is still there. Where a request
evicts, it keeps keys at random and moves them where it is told to.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tests.server.simulated_keys import (
    choice_of,
    first_rows,
    images_of,
    keys_of,
    keys_seen,
    search_of,
)
from tests.server.simulated_scheduler import Setting, scheduler_for
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from heed_kernels.edits import Edit, VisibleKeys
from heed_kernels.evict import Evict
from heed_kernels.segments import Segments
from heed_server.engine.messages import (
    EVICTED,
    EVICTING,
    FAILED,
    NOT_KEPT,
    ORDERS,
    RELEASED,
    Event,
    Orders,
)
from heed_server.engine.payload import RESERVED_KEY, Payload, pack
from heed_server.engine.scheduling.hidden_blocks import Window


@dataclass
class Plan:
    """A request: all its tokens, of which the first `prompt` are given.

    window: what its rows see; segments: how keys are sought in it; limit: its publication limit where
    keys are sought and it is not the prompt's length. chooses: its last prompt row chooses heads for all
    rows, in place of the search. images: first tokens and numbers of tokens.
    """

    name: str
    tokens: list[int]
    prompt: int
    window: Window | None = None
    segments: Segments | None = None
    limit: int | None = None
    evict: Evict | None = None
    chooses: bool = False
    images: tuple[tuple[int, int], ...] = ()


@dataclass
class Row:
    """A request as the worker knows it."""

    plan: Plan
    keys: np.ndarray
    blocks: list[int] = field(default_factory=list)
    sampled: int = 0
    survivors: list[int] = field(default_factory=list)
    evicted_end: int = 0

    def start(self, blocks: Sequence[int]) -> None:
        """It enters the batch, or comes back after a preemption."""
        self.blocks, self.survivors, self.evicted_end = list(blocks), [], 0

    def seen(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the keys that one of the rows [first, last] sees, and their places in the cache."""
        if first < self.evicted_end or not self.evicted_end:  # a replay has not evicted yet
            keys = keys_seen(self.plan.window, first, last)
            return keys, keys
        later = np.arange(self.evicted_end, last + 1)
        kept = np.array(self.survivors, int)
        return np.concatenate([kept, later]), np.concatenate([np.arange(len(kept)), later])


class Simulator:
    """An engine: `add`, `step` until `idle`. Requests in `failing` are computed without their edits."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.chance = random.Random(0)
        self.nothing_evicted = 0.0
        self.scheduler = scheduler_for(setting)
        self.manager = self.scheduler.kv_cache_manager.coordinator.single_type_managers[0]
        self.pool = self.scheduler.kv_cache_manager.block_pool
        self.hasher = get_request_block_hasher(setting.block_size, sha256)
        self.memory = np.zeros((setting.pool + 1, setting.block_size), np.int64)
        self.rows: dict[str, Row] = {}
        self.under_way: deque[Any] = deque()
        self.preemptions = 0
        self.most_running = 0
        self.most_blocks = 0
        self.reported: dict[str, tuple[int, int]] = {}
        self.counted: dict[str, tuple[int, int]] = {}
        self.resumed = 0
        self.events = 0
        self.in_place = 0
        self.failing: set[str] = set()
        self.encoded: set[str] = set()

    @property
    def idle(self) -> bool:
        return not self.scheduler.requests and not self.under_way

    def add(self, plan: Plan) -> None:
        params = SamplingParams(
            max_tokens=len(plan.tokens) - plan.prompt, ignore_eos=True, temperature=0
        )
        edits: list[Edit] = [plan.evict] if plan.evict is not None else []
        limit, salt = plan.prompt if edits else None, None
        if plan.window is not None:
            window = plan.window
            edits.append(VisibleKeys(window.sinks, window.window, True, 0))
            salt = f"{window.sinks}, {window.window}"
        elif plan.segments is not None:
            limit = 0 if plan.segments.ahead else plan.prompt
            limit = limit if plan.limit is None else plan.limit
            edits.append(choice_of(plan.prompt) if plan.chooses else search_of(plan.segments))
            salt = None if plan.segments.ahead else "causal"
        if edits:
            packed = pack(Payload(plan.name, 1, plan.prompt, limit, tuple(edits)))
            params.extra_args = {RESERVED_KEY: packed}
        self.rows[plan.name] = Row(plan, keys_of(plan.tokens, salt))
        self.scheduler.add_request(
            Request(
                request_id=plan.name,
                prompt_token_ids=plan.tokens[: plan.prompt],
                sampling_params=params,
                pooling_params=None,
                mm_features=images_of(plan.name, plan.images),
                cache_salt=salt,
                block_hasher=self.hasher,
            )
        )

    def abort(self, name: str) -> None:
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)

    def preempt_all(self) -> None:
        """As when the prefix cache is reset under running requests."""
        self.scheduler.reset_prefix_cache(reset_running_requests=True)

    def step(self) -> None:
        before = {r.request_id: r.num_preemptions for r in self.scheduler.requests.values()}
        output = self.scheduler.schedule()
        self.check_accounts(output)
        for earlier in self.under_way:
            self.check_under_way(earlier)
        for request in self.scheduler.requests.values():
            self.preemptions += request.num_preemptions - before[request.request_id]
        self.most_running = max(self.most_running, len(self.scheduler.running))
        used = self.setting.pool - self.pool.get_num_free_blocks()
        self.most_blocks = max(self.most_blocks, used)
        self.under_way.append(output)
        if len(self.under_way) > self.setting.run_ahead or not output.num_scheduled_tokens:
            while self.under_way:
                self.run(self.under_way.popleft())
                if self.setting.run_ahead and output.num_scheduled_tokens:
                    break

    def run(self, output: Any) -> None:
        """What a worker does with a step, and what the scheduler does with the worker's answer."""
        for new in output.scheduled_new_reqs:
            self.rows[new.req_id].start(new.block_ids[0])
        cached = output.scheduled_cached_reqs
        first = first_rows(output)
        self.carry_out(output, first)
        for name, blocks in zip(cached.req_ids, cached.new_block_ids, strict=True):
            if name in cached.resumed_req_ids:
                self.rows[name].start(blocks[0])
            elif blocks is not None:
                self.rows[name].blocks += blocks[0]
        entering = {new.req_id for new in output.scheduled_new_reqs} | cached.resumed_req_ids
        scheduled: dict[str, int] = output.num_scheduled_tokens
        for name, count in scheduled.items():
            self.check_segment(self.rows[name].plan, first[name], first[name] + count)
            self.check_images(output, self.rows[name].plan, first[name], first[name] + count)
            self.check_chunk(self.rows[name], first[name], first[name] + count, name in entering)
            self.write(self.rows[name], range(first[name], first[name] + count))
        for name, count in scheduled.items():
            if name not in self.failing:
                self.read(self.rows[name], first[name], first[name] + count - 1)
        sampled = [
            self.sample(self.rows[name], first[name] + scheduled[name]) for name in scheduled
        ]
        names = list(scheduled)
        answer = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: i for i, name in enumerate(names)},
            sampled_token_ids=sampled,
        )
        setattr(answer, FAILED, [name for name in scheduled if name in self.failing])
        orders = getattr(output, ORDERS, Orders())
        not_kept = [key for name, key in orders.keep.items() if name in self.failing]
        setattr(answer, NOT_KEPT, not_kept)
        self.counted = {key: at for key, at in self.counted.items() if key not in not_kept}
        events: dict[str, Event] = getattr(output, EVICTING, {})
        kept = {name: self.evict(self.rows[name], event) for name, event in events.items()}
        setattr(answer, EVICTED, {name: most for name, most in kept.items() if most is not None})
        self.scheduler.update_from_output(output, answer)

    def carry_out(self, output: Any, first: dict[str, int]) -> None:
        """Keep counts and go on from them: each is of the very rows that the request does not compute."""
        orders = getattr(output, ORDERS, Orders())
        entered = {new.req_id for new in output.scheduled_new_reqs}
        for name in entered | set(output.scheduled_cached_reqs.resumed_req_ids):
            if self.rows[name].plan.segments is not None and first[name]:
                counted = self.counted[orders.resume[name]]
                assert counted == (first[name], self.rows[name].keys[first[name] - 1])
                self.resumed += 1
        for name, key in orders.keep.items():
            self.counted[key] = (first[name], self.rows[name].keys[first[name] - 1])
        for key in orders.drop:
            del self.counted[key]
        assert set(self.counted) == set(self.scheduler._kept) or self.setting.run_ahead

    def check_segment(self, plan: Plan, first: int, end: int) -> None:
        """A step holds rows of one segment, and all of a prompt that is looked ahead at."""
        segments = plan.segments
        if segments is not None:
            assert end <= segments.end(first), f"{plan.name}: rows {first} to {end - 1}"
            assert not segments.ahead or end >= plan.prompt, f"{plan.name}: {end} rows"

    def check_images(self, output: Any, plan: Plan, first: int, end: int) -> None:
        """The encoder has seen every image of a step's rows."""
        self.encoded -= set(output.free_encoder_mm_hashes)
        for index in output.scheduled_encoder_inputs.get(plan.name, ()):
            self.encoded.add(f"{plan.name} {index}")
        for index, (start, count) in enumerate(plan.images):
            seen = start < end and first < start + count
            assert not seen or f"{plan.name} {index}" in self.encoded, f"{plan.name}: image {index}"

    def places(self, row: Row, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = self.setting.block_size
        return np.array(row.blocks)[positions // size], positions % size

    def write(self, row: Row, positions: range) -> None:
        at = np.arange(positions.start, positions.stop)
        blocks, offsets = self.places(row, at)
        assert (blocks != 0).all(), f"{row.plan.name} writes into the null block"
        self.memory[blocks, offsets] = -1 if row.plan.name in self.failing else row.keys[at]

    def read(self, row: Row, first: int, last: int) -> None:
        """Every key that one of the rows [first, last] sees."""
        seen, places = row.seen(first, last)
        wrong = self.memory[self.places(row, places)] != row.keys[seen]
        assert not wrong.any(), (
            f"{row.plan.name}: rows {first} to {last} see {wrong.sum()} keys that are not theirs, "
            f"the first at {seen[wrong][0]} ({row.plan.window})"
        )

    def evict(self, row: Row, event: Event) -> int | None:
        """Keep keys at random, as many as they may be, and move them to the targets."""
        edit = row.plan.evict
        assert edit is not None
        held, places = row.seen(event.end - 1, event.end - 1)
        count = min(edit.counts) if edit.again else self.chance.randint(1, edit.most)
        if count >= len(held) or self.chance.random() < self.nothing_evicted:
            return None
        chosen = sorted(self.chance.sample(range(len(held)), count))
        keys = self.memory[self.places(row, places[chosen])]
        row.survivors, row.evicted_end = held[chosen].tolist(), event.end
        row.blocks[: len(event.targets)] = event.targets
        self.memory[self.places(row, np.arange(count))] = keys
        return count

    def check_chunk(self, row: Row, first: int, end: int, entering: bool) -> None:
        """No step goes beyond an event, and the last prompt rows are in one step."""
        edit, size = row.plan.evict, self.setting.block_size
        if edit is None or len(row.plan.tokens) == row.plan.prompt + 1:
            return
        prompt, last = row.plan.prompt, max(0, row.plan.prompt - edit.together)
        assert not first < prompt < end
        assert not last < end < prompt
        assert end != prompt or first <= last
        if entering:
            assert first <= (0 if edit.every_row else last)
        if edit.again and first >= prompt:
            assert end <= (first // size + 1) * size

    def sample(self, row: Row, end: int) -> list[int]:
        if end < row.plan.prompt + row.sampled:
            return []
        row.sampled += 1
        # A step that runs ahead may compute one row past the end; its token is dropped.
        return [row.plan.tokens[end] if end < len(row.plan.tokens) else 0]

    def check_accounts(self, output: Any) -> None:
        """No block is leaked or freed twice, and what is reported is what is so."""
        held: dict[int, int] = {}
        for blocks in self.manager.req_to_blocks.values():
            for block in blocks:
                held[block.block_id] = held.get(block.block_id, 0) + 1
        for evicting in self.scheduler._evicting.values():
            for block in evicting.fresh:
                held[block.block_id] = held.get(block.block_id, 0) + 1
        for block in self.pool.blocks:
            assert block.is_null or block.ref_cnt == held.get(block.block_id, 0)
        free = [block.block_id for block in self.pool.free_block_queue.get_all_free_blocks()]
        assert len(free) == len(set(free)) == self.pool.get_num_free_blocks()
        assert set(free) == {
            b.block_id for b in self.pool.blocks if not b.is_null and not b.ref_cnt
        }
        for name, event in getattr(output, EVICTING, {}).items():
            self.events += 1
            assert event.end < len(self.rows[name].plan.tokens) - 1
            assert len(set(event.targets)) == len(event.targets)
            for target in event.targets:
                block = self.pool.blocks[target]
                assert block.ref_cnt == held[target] == 1 and block.block_hash is None
                self.in_place += any(block is b for b in self.manager.req_to_blocks[name])
        for name, (freed, evicted) in getattr(output, RELEASED, {}).items():
            if evicted is None:
                self.reported[name] = (freed, 0)
                continue
            nulls = sum(block.is_null for block in self.manager.req_to_blocks[name])
            assert evicted == nulls * self.setting.block_size
            assert freed >= self.reported.get(name, (0, 0))[0]
            self.reported[name] = (freed, evicted)

    def check_under_way(self, output: Any) -> None:
        """A step that has not run yet finds its keys unless its request is gone altogether."""
        size = self.setting.block_size
        for name, first in first_rows(output).items():
            blocks = self.manager.req_to_blocks.get(name)
            request = self.scheduler.requests.get(name)
            if blocks and request is not None and not request.num_stale_output_tokens:
                last = first + output.num_scheduled_tokens[name] - 1
                _, places = self.rows[name].seen(first, last)
                assert not any(blocks[block].is_null for block in {*(places // size).tolist()})

    def finish(self, steps: int) -> None:
        """Step until nothing is left; more than `steps` means that it never would be."""
        for _ in range(steps):
            if self.idle:
                break
            self.step()
        assert self.idle, f"still there: {sorted(self.scheduler.requests)}"
        assert self.pool.get_num_free_blocks() == self.setting.pool
        assert not self.manager.req_to_blocks and not self.manager.num_cached_block
        assert not self.scheduler._streams and not self.scheduler._evicting
        assert not self.manager._pending_cow_copies
        assert not self.scheduler._segments and not self.scheduler._passed
