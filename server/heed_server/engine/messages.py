"""What scheduler and workers tell each other with a step, as attributes of what vLLM sends anyway.

On a `SchedulerOutput`: RELEASED, EVICTING and ORDERS. On a `ModelRunnerOutput`: EVICTED, NOT_KEPT and FAILED.
"""

from dataclasses import dataclass, field

RELEASED = "heed_released"
"""By request id the totals: blocks freed, and tokens evicted where the scheduler can tell, else None."""

EVICTING = "heed_evicting"
"""By request id the `Event` that takes place after the step."""

EVICTED = "heed_evicted"
"""By request id the most keys that any head kept at its event, over all ranks. A request that let nothing go is
not in it."""

ORDERS = "heed_orders"
"""The step's `Orders`."""

NOT_KEPT = "heed_not_kept"
"""Keys that nothing was kept under, because a search had failed."""

FAILED = "heed_failed"
"""Requests that the worker could not edit, and computed otherwise, from this step on."""


@dataclass(frozen=True, eq=False)
class Event:
    """end: tokens computed when it takes place. targets: numbers of the blocks that take the survivors, in
    the order of their places."""

    end: int
    targets: list[int]


@dataclass(frozen=True)
class Orders:
    """Of what searches have counted: what a step keeps, goes on from, and forgets when it is done.

    keep, resume: keys by request id. keep: what the request has counted before the step's rows.
    """

    keep: dict[str, str] = field(default_factory=dict)
    resume: dict[str, str] = field(default_factory=dict)
    drop: list[str] = field(default_factory=list)
