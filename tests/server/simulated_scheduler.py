"""Heed's schedulers as an engine would make them, for `schedule_simulator.py`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from tests.server.simulated_keys import LONGEST
from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.utils.hashing import sha256
from vllm.v1.core.encoder_cache_manager import EncoderCacheManager
from vllm.v1.core.kv_cache_utils import init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.structured_output import StructuredOutputManager

from heed_server.engine.scheduling.scheduler import HeedAsyncScheduler, HeedScheduler
from heed_server.models import bundled_model


@dataclass(frozen=True)
class Setting:
    """How a server is started. pool: blocks that requests can have. encoder: tokens of images that it takes in one
    step, and keeps."""

    pool: int
    block_size: int = 4
    chunk: int = 16
    batch: int = 6
    prefix_caching: bool = True
    reserve_full_prompt: bool = True
    watermark: float = 0.0
    run_ahead: bool = False
    encoder: int = 0


@cache
def _model_config() -> ModelConfig:
    model = bundled_model("heed-tiny")
    assert model is not None
    return ModelConfig(model=str(model.directory), dtype="float32")


def scheduler_for(setting: Setting) -> Any:
    """A scheduler as an engine would make it."""
    init_none_hash(sha256)
    scheduling = SchedulerConfig(
        max_model_len=LONGEST,
        is_encoder_decoder=False,
        max_num_batched_tokens=setting.chunk,
        max_num_seqs=min(setting.batch, setting.chunk),
        watermark=setting.watermark,
        scheduler_reserve_full_isl=setting.reserve_full_prompt,
    )
    scheduling.async_scheduling = setting.run_ahead
    cache_config = CacheConfig(
        block_size=setting.block_size, enable_prefix_caching=setting.prefix_caching
    )
    cache_config.num_gpu_blocks = setting.pool + 1
    config = VllmConfig(
        model_config=_model_config(), scheduler_config=scheduling, cache_config=cache_config
    )
    config.scheduler_config.async_scheduling = setting.run_ahead
    spec = FullAttentionSpec(
        block_size=setting.block_size, num_kv_heads=1, head_size=1, dtype=torch.float32
    )
    kind = HeedAsyncScheduler if setting.run_ahead else HeedScheduler
    scheduler: Any = kind(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=setting.pool + 1,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=setting.block_size,
        log_stats=False,
    )
    scheduler.max_num_encoder_input_tokens = setting.encoder
    scheduler.encoder_cache_manager = EncoderCacheManager(setting.encoder)
    scheduler.max_model_len = scheduler.kv_cache_manager.max_model_len = LONGEST
    return scheduler
