"""Scheduler seam: requests that read the image encoder come to the workers with the pixels of all their images.

vLLM leaves out the pixels of an image whose tokens all come out of the prefix cache: no encoder run of its
own needs them. What the encoder's class token attends to may still have to be found (`image_tower.py`).
"""

from collections.abc import Mapping
from typing import Any

from heed_server.engine.payload import packed_in


class WholeImagesMixin:
    """Put before the scheduler class that vLLM itself would use."""

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """As in `Scheduler`."""
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        for new in output.scheduled_new_reqs:
            params = new.sampling_params
            packed = packed_in(params.extra_args) if params is not None else None
            if packed is not None and speaks_of_patches(packed):
                # The scheduler's own request has them all.
                new.mm_features = self.requests[new.req_id].mm_features  # type: ignore[attr-defined]
        return output


def speaks_of_patches(packed: Mapping[str, Any]) -> bool:
    """Whether an edit of a packed payload (`payload.pack`) is of `PatchKeys`."""
    return any(
        edit["kind"] == "key_scale" and isinstance(edit["keys"], Mapping)
        for edit in packed["edits"]
    )
