"""Requests that read the image encoder come with all pixels; others with what vLLM sends."""

from types import SimpleNamespace
from typing import Any

import pytest

from heed_kernels.edits import OPEN, Edit, HeadSet, KeyRanges, KeyScale, PatchKeys, Rows
from heed_server.engine.payload import RESERVED_KEY, Payload, pack
from heed_server.engine.scheduling.whole_images import WholeImagesMixin

IMAGE = KeyRanges(((3, 11),))
ON, ROWS = HeadSet((1,)), Rows(19, OPEN)
PATCHES: Edit = KeyScale(ON, ROWS, PatchKeys(IMAGE, True, 2), 1.0, 0.3, 0)
RANGES: Edit = KeyScale(ON, ROWS, IMAGE, 1.0, 0.3, 0)


class Stock:
    """A scheduler that leaves out the pixels of images out of the prefix cache."""

    def __init__(self, extra_args: Any) -> None:
        self.requests = {"a": SimpleNamespace(mm_features=["pixels"])}
        params = SimpleNamespace(extra_args=extra_args)
        self.new = [
            SimpleNamespace(req_id="a", sampling_params=params, mm_features=["none"]),
            SimpleNamespace(req_id="pooled", sampling_params=None, mm_features=["none"]),
        ]

    def schedule(self) -> Any:
        return SimpleNamespace(scheduled_new_reqs=self.new)


class Scheduler(WholeImagesMixin, Stock):
    pass


@pytest.mark.parametrize(
    ("edits", "features"), [((RANGES, PATCHES), "pixels"), ((RANGES,), "none"), (None, "none")]
)
def test_pixels_are_sent_along_where_patches_are_spoken_of(
    edits: tuple[Edit, ...] | None, features: str
) -> None:
    extra = None if edits is None else {RESERVED_KEY: pack(Payload("r", 1, 20, 19, edits))}
    asked, pooled = Scheduler(extra).schedule().scheduled_new_reqs
    assert asked.mm_features == [features]
    assert pooled.mm_features == ["none"]
