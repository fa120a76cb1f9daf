"""Host work that Heed's schedulers add to a step of plain traffic: microseconds beside vLLM's own.

A step is `schedule()` and `update_from_output()`, with the answer that a worker could have given: a token
for each request. Both schedulers have the same requests, all past their prompts, and take turns.

    python benchmarks/host_scheduler.py
"""

import time
from typing import Any

import numpy as np
import torch
from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from heed_server.engine.scheduling.scheduler import HeedAsyncScheduler, HeedScheduler
from heed_server.models import bundled_model

BATCHES = (1, 16, 64, 256)
PROMPT, STEPS, UNTIMED = 64, 600, 50
BLOCK_SIZE, BLOCKS = 32, 10_000
KINDS = {"synchronous": (Scheduler, HeedScheduler), "async": (AsyncScheduler, HeedAsyncScheduler)}


def main() -> None:
    init_none_hash(sha256)
    print(f"median µs per step of {STEPS}; added is the median of the differences of paired steps")
    print("| scheduler | batch | stock | Heed | added | share of stock |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, kinds in KINDS.items():
        for batch in BATCHES:
            times = _measure(kinds, batch)
            stock, heed = np.median(times, axis=0)
            added = float(np.median(times[:, 1] - times[:, 0]))
            print(
                f"| {name} | {batch} | {stock:.1f} | {heed:.1f} | {added:+.1f} | {added / stock:+.1%} |"
            )


def _measure(kinds: tuple[type, type], batch: int) -> np.ndarray:
    """Microseconds, [steps, 2]."""
    pair = [_scheduler(kind, batch) for kind in kinds]
    times = np.zeros((UNTIMED + STEPS, 2))
    for step in range(len(times)):
        # Who goes first finds colder caches: they take turns at that too.
        for side in (0, 1) if step % 2 else (1, 0):
            begin = time.perf_counter()
            _step(pair[side])
            times[step, side] = 1e6 * (time.perf_counter() - begin)
    return times[UNTIMED:]


def _step(scheduler: Any) -> None:
    output = scheduler.schedule()
    names = list(output.num_scheduled_tokens)
    answer = ModelRunnerOutput(
        req_ids=names,
        req_id_to_index={name: index for index, name in enumerate(names)},
        sampled_token_ids=[[1]] * len(names),
    )
    scheduler.update_from_output(output, answer)


def _scheduler(kind: Any, batch: int) -> Any:
    """A scheduler as an engine would make it, with so many plain requests."""
    model = bundled_model("heed-tiny")
    if model is None:
        raise SystemExit("heed-tiny is not installed")
    cache = CacheConfig(block_size=BLOCK_SIZE, enable_prefix_caching=True)
    cache.num_gpu_blocks = BLOCKS
    model_config = ModelConfig(model=str(model.directory), dtype="float32")
    scheduling = SchedulerConfig(
        max_model_len=model_config.max_model_len,
        is_encoder_decoder=False,
        max_num_batched_tokens=batch * PROMPT + model_config.max_model_len,
        max_num_seqs=batch,
    )
    scheduling.async_scheduling = issubclass(kind, AsyncScheduler)
    config = VllmConfig(model_config=model_config, scheduler_config=scheduling, cache_config=cache)
    spec = FullAttentionSpec(
        block_size=BLOCK_SIZE, num_kv_heads=1, head_size=1, dtype=torch.float32
    )
    scheduler = kind(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=BLOCKS,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK_SIZE,
        log_stats=False,
    )
    hasher = get_request_block_hasher(BLOCK_SIZE, sha256)
    for number in range(batch):
        params = SamplingParams(max_tokens=UNTIMED + STEPS + 2, ignore_eos=True)
        tokens = [number + 2] * PROMPT
        scheduler.add_request(Request(str(number), tokens, params, None, block_hasher=hasher))
    return scheduler


if __name__ == "__main__":
    main()
