"""Which methods can be had on which of vLLM's paths: the one place that says so.

A path is a device, a model runner and a scheduler. Most methods need nothing but edited rows; `act` also
needs keys to be found by column sums, which is there wherever rows are edited. Some need more to be observed
while the model runs, and some take keys out of the cache: both can be had wherever rows are edited as well.
"""

from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal, get_args

from heed_interventions.method import Method

Device = Literal["cpu", "cuda"]
Runner = Literal["v1", "v2"]
Scheduler = Literal["sync", "async"]
Verified = Literal["on_device", "simulated"]
"""How it is known that a method works on a device. on_device: it has run there, and its answers were compared with the
reference. simulated: kernels under Triton's interpreter, runners and workers with stand-ins for the device, schedulers
on a simulator; nothing has run on such a device."""

NOT_OBSERVED = "edited attention on this server's device cannot observe attention weights yet"
NOT_EVICTED = "nothing on this server's device can take keys out of the cache"
_NO_SECOND_RUNNER = "on the CPU requests are edited in vLLM's V1 runner only as yet"
_NO_RUNNING_AHEAD = "vLLM schedules synchronously on the CPU, whatever it is asked for"
_VERIFIED: dict[Device, Verified] = {"cpu": "on_device", "cuda": "simulated"}


@dataclass(frozen=True)
class Path:
    """How a server computes: on a device, in a model runner, fed by a scheduler."""

    device: Device
    runner: Runner
    scheduler: Scheduler


PATHS = tuple(
    Path(*parts) for parts in product(get_args(Device), get_args(Runner), get_args(Scheduler))
)


def observation_obstacle(device: str | None) -> str | None:
    """Why attention weights cannot be observed on a device (None: one that edits nothing);
    None where they can."""
    return None if device in get_args(Device) else NOT_OBSERVED


def eviction_obstacle(device: str | None) -> str | None:
    """Why keys cannot be taken out of the cache on a device (None: one that edits nothing);
    None where they can."""
    return None if device in get_args(Device) else NOT_EVICTED


def obstacle(method: type[Method], path: Path) -> str | None:
    """Why no request can use the method there, whatever the model; None where one can."""
    if path.device == "cpu" and path.runner == "v2":
        return _NO_SECOND_RUNNER
    if path.device == "cpu" and path.scheduler == "async":
        return _NO_RUNNING_AHEAD
    found = observation_obstacle(path.device) if method.observes else None
    if found is None and method.evicts:
        found = eviction_obstacle(path.device)
    return found


def support_matrix(method: type[Method]) -> list[dict[str, Any]]:
    """Every path with whether the method can be had there, why not, and how that was verified (None
    where it cannot)."""
    return [_cell(path, obstacle(method, path)) for path in PATHS]


def _cell(path: Path, reason: str | None) -> dict[str, Any]:
    verified = _VERIFIED[path.device] if reason is None else None
    return {**asdict(path), "available": reason is None, "reason": reason, "verified": verified}
