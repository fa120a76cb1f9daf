"""On which of vLLM's paths methods can be had: the one place that says so.

A path is a device, a model runner and a scheduler. Where rows can be edited, keys are found, heads compared
and keys taken out of the cache as well, so that every method can be had there.
"""

from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal, get_args

Device = Literal["cpu", "cuda"]
Runner = Literal["v1", "v2"]
Scheduler = Literal["sync", "async"]
Verified = Literal["on_device", "simulated"]
"""How it is known that a method works on a device. on_device: it has run there, and its answers were compared with the
reference. simulated: kernels under Triton's interpreter, runners and workers with stand-ins for the device, schedulers
on a simulator; nothing has run on such a device."""

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


def obstacle(path: Path) -> str | None:
    """Why no request can be edited there, whatever the model; None where one can."""
    if path.device == "cpu" and path.runner == "v2":
        return _NO_SECOND_RUNNER
    if path.device == "cpu" and path.scheduler == "async":
        return _NO_RUNNING_AHEAD
    return None


def support_matrix() -> list[dict[str, Any]]:
    """Every path with whether methods can be had there, why not, and how that was verified (None where
    they cannot)."""
    return [_cell(path, obstacle(path)) for path in PATHS]


def _cell(path: Path, reason: str | None) -> dict[str, Any]:
    verified = _VERIFIED[path.device] if reason is None else None
    return {**asdict(path), "available": reason is None, "reason": reason, "verified": verified}
