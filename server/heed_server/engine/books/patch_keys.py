"""Edits of patches in the worker: ranges of keys take their place when a request gets its slot. No vLLM here."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from heed_kernels.beside.patches import ClassAttention, ranges_of
from heed_kernels.edits import Edit, KeyScale, PatchKeys
from heed_server.engine.payload import Payload

Attention = Callable[[Sequence[Any]], Sequence[ClassAttention]]
"""Of each image of a request, from what vLLM has of them."""


def with_patches(
    payload: Payload, attention: Attention, features: Sequence[Any]
) -> tuple[Payload, dict[int, dict[str, Any]]]:
    """The payload with ranges of keys in place of patches, and by intervention what the report tells of them:
    how many keys of the images are local and in the summary, and where detailed which.

    features: vLLM's, of the request's images; looked at only where there are edits of patches.

    Raises:
        EditError: as `ranges_of`.
    """
    edits: list[Edit] = []
    told: dict[int, dict[str, Any]] = {}
    seen: Sequence[ClassAttention] | None = None
    for edit in payload.edits:
        if not isinstance(edit, KeyScale) or not isinstance(edit.keys, PatchKeys):
            edits.append(edit)
            continue
        seen = attention(features) if seen is None else seen
        name, keys = "summary" if edit.keys.summary else "local", ranges_of(edit.keys, seen)
        if keys.ranges:
            edits.append(replace(edit, keys=keys))
        positions = [key for start, end in keys.ranges for key in range(start, end)]
        part = told.setdefault(edit.source, {"patches": {}})
        part["patches"][name] = len(positions)
        if edit.source in payload.detailed:
            part.setdefault("patch_keys", {})[name] = positions
    return replace(payload, edits=tuple(edits)), told
