"""What travels with a request from the API process to scheduler and workers, in `SamplingParams.extra_args`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heed_kernels.edits import Edit
from heed_kernels.inspection import Inspection, inspection_from_wire, inspection_to_wire
from heed_kernels.wire import from_wire, to_wire

RESERVED_KEY = "heed"
"""Heed's own key in `extra_args`; refused when it comes from outside."""

POSITIONS = 8
"""Of a layer's sinks, how many positions a report names; one in full has all."""


@dataclass(frozen=True)
class Twin:
    """Says that a request runs for another one, which is compared with the outputs of its last row.

    report: the report id of that other request. taken: how often it takes the outputs: with each of its
        choices, and with each that compares. layers: those whose head outputs are needed.
    """

    report: str
    taken: int
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Payload:
    """One engine request's edits, ready to be compiled.

    report: id under which the worker keeps what it ran.
    choices: `n` of the request; its children share the report id and differ in their index.
    prompt_length: P, in tokens.
    publication_limit: no block with a row at or past this position is published to, or read from,
        the prefix cache; None: no limit.
    detailed: interventions whose reports are to have their long parts.
    inspection: what is to be measured of its attention, if anything is.
    inspection_reported: whether that is for the request's own reports: its attention to images.
    twin: whose twin it is, if it is one.
    """

    report: str
    choices: int
    prompt_length: int
    publication_limit: int | None
    edits: tuple[Edit, ...]
    detailed: tuple[int, ...] = ()
    inspection: Inspection | None = None
    inspection_reported: bool = False
    twin: Twin | None = None


def pack(payload: Payload) -> dict[str, Any]:
    """The payload as plain values that msgpack carries."""
    inspection, twin = payload.inspection, payload.twin
    return {
        "report": payload.report,
        "choices": payload.choices,
        "prompt_length": payload.prompt_length,
        "publication_limit": payload.publication_limit,
        "edits": to_wire(payload.edits),
        "detailed": list(payload.detailed),
        "inspection": None if inspection is None else inspection_to_wire(inspection),
        "inspection_reported": payload.inspection_reported,
        "twin": [twin.report, twin.taken, list(twin.layers)] if twin is not None else None,
    }


def packed_in(extra_args: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The packed payload that `extra_args` carries, or None for a plain request."""
    return extra_args.get(RESERVED_KEY) if extra_args else None


def unpack(packed: Mapping[str, Any]) -> Payload:
    """Inverse of `pack`.

    Raises:
        EditError: the edits are malformed.
    """
    edits: Sequence[Edit] = from_wire(packed["edits"])
    inspection, twin = packed["inspection"], packed["twin"]
    return Payload(
        report=packed["report"],
        choices=packed["choices"],
        prompt_length=packed["prompt_length"],
        publication_limit=packed["publication_limit"],
        edits=tuple(edits),
        detailed=tuple(packed["detailed"]),
        inspection=None if inspection is None else inspection_from_wire(inspection),
        inspection_reported=packed["inspection_reported"],
        twin=Twin(twin[0], twin[1], tuple(twin[2])) if twin is not None else None,
    )
