"""The numbers that stand for keys in `schedule_simulator.py`, which of them a row sees, and how they are sought."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

from heed_kernels.edits import OPEN, FindKeys, HeadChoice, HeadSet, KeyRanges, Rows
from heed_kernels.segments import Segments
from heed_server.engine.scheduling.hidden_blocks import Window

LONGEST = 1 << 14
EVERYTHING = Window(0, LONGEST)


def keys_seen(window: Window | None, first: int, last: int) -> np.ndarray:
    """Every key that one of the rows [first, last] sees."""
    window = window or EVERYTHING
    begin = max(0, first - window.window + 1)
    return np.concatenate([np.arange(min(window.sinks, begin)), np.arange(begin, last + 1)])


def keys_of(tokens: Sequence[int], salt: str | None) -> np.ndarray:
    """A number for each token that no other beginning, and no other salt, has."""
    keys, key = np.zeros(len(tokens) + 1, np.int64), hash(salt)
    for i, token in enumerate(tokens):
        key = hash((key, token))
        keys[i] = key
    return keys


def search_of(segments: Segments) -> FindKeys:
    """A search with these segments."""
    rows = Rows(0, OPEN if segments.running else segments.prompt)
    return FindKeys(
        HeadSet((1,)), rows, 0.1, 1, 8, KeyRanges(()), True, 0,
        prompt=segments.prompt, ahead=segments.ahead, until=segments.until,
    )  # fmt: skip


def choice_of(prompt: int) -> HeadChoice:
    """Heads that the last prompt row chooses, for all rows."""
    return HeadChoice(HeadSet((1,)), Rows(), prompt - 1, KeyRanges(()), 1, 2.0, True, 0)


def images_of(name: str, images: Sequence[tuple[int, int]]) -> list[MultiModalFeatureSpec]:
    """vLLM's features for images with these first tokens and numbers of tokens, different ones in each request."""
    return [
        MultiModalFeatureSpec(None, "image", f"{name} {index}", PlaceholderRange(start, count))
        for index, (start, count) in enumerate(images)
    ]


def first_rows(output: Any) -> dict[str, int]:
    """The first row of each request in a step."""
    cached = output.scheduled_cached_reqs
    first = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    return first | {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
