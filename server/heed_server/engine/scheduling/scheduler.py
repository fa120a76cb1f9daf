"""Scheduler seam: Heed's schedulers, put together from what each mixin says."""

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from heed_server.engine.scheduling.kept_counts import KeptCountsMixin
from heed_server.engine.scheduling.kv_eviction import EvictionMixin
from heed_server.engine.scheduling.kv_release import ReleaseMixin
from heed_server.engine.scheduling.plain_steps import PlainStepsMixin
from heed_server.engine.scheduling.publication import PublicationMixin
from heed_server.engine.scheduling.whole_images import WholeImagesMixin
from heed_server.engine.scheduling.whole_prompts import WholePromptMixin


class HeedMixins(
    PlainStepsMixin,
    KeptCountsMixin,
    WholePromptMixin,
    EvictionMixin,
    ReleaseMixin,
    PublicationMixin,
    WholeImagesMixin,
):
    """All that Heed adds: put before the scheduler class that vLLM itself would use."""


class HeedScheduler(HeedMixins, Scheduler):  # type: ignore[misc]
    """vLLM's scheduler with the publication rule, blocks freed while requests run, steps cut where found
    keys change, and pixels for those that read the image encoder."""


class HeedAsyncScheduler(HeedMixins, AsyncScheduler):  # type: ignore[misc]
    """vLLM's asynchronous scheduler with the same."""
