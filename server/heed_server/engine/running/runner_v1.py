"""V1 model-runner seam: who is in the batch, and the metadata of each step."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from vllm.config import CUDAGraphMode

from heed_server.engine.books.edited_requests import EditedRequests, LookedAt
from heed_server.engine.messages import Event
from heed_server.engine.payload import packed_in, unpack
from heed_server.engine.running import step
from heed_server.engine.running.device_edits import DeviceEdits
from heed_server.engine.running.step import StepEdits


class EditsInRunner:
    """Put before a V1 runner class (`GPUModelRunner` or its CPU subclass)."""

    edited: EditedRequests | None = None
    """None until `edit_with`, and on a model whose requests cannot be edited."""
    on_device: DeviceEdits | None = None
    """On a GPU, where the kernel reads what to edit."""
    _made_up = False
    """Whether the batch at hand is nobody's, whoever stands in the runner's own."""

    def edit_with(self, edited: EditedRequests, on_device: DeviceEdits | None = None) -> None:
        """From now on requests may be edited. on_device: on a GPU only."""
        self.edited, self.on_device = edited, on_device

    def _update_states(self, scheduler_output: Any) -> Any:
        result = super()._update_states(scheduler_output)  # type: ignore[misc]
        if self.edited is None:
            return result
        for request_id in scheduler_output.finished_req_ids:
            self.edited.leave(request_id, finished=True)
        for request_id in scheduler_output.preempted_req_ids or ():
            self.edited.leave(request_id, finished=False)
        for new in scheduler_output.scheduled_new_reqs:
            self._enter(new.req_id, new.sampling_params, new.num_computed_tokens)
        cached = scheduler_output.scheduled_cached_reqs
        if cached.resumed_req_ids:
            for request_id, computed in zip(
                cached.req_ids, cached.num_computed_tokens, strict=True
            ):
                if request_id in cached.resumed_req_ids:
                    params = self.requests[request_id].sampling_params  # type: ignore[attr-defined]
                    self._enter(request_id, params, computed)
        return result

    def _enter(self, request_id: str, sampling_params: Any, computed_tokens: int) -> None:
        packed = packed_in(sampling_params.extra_args) if sampling_params is not None else None
        if packed is not None and self.edited is not None:
            request = self.requests[request_id]  # type: ignore[attr-defined]
            self.edited.enter(
                request_id,
                unpack(packed),
                computed_tokens,
                max_tokens=sampling_params.max_tokens,
                features=request.mm_features,
            )

    def _determine_batch_execution_and_padding(self, *args: Any, **kwargs: Any) -> Any:
        """As in `GPUModelRunner`; a step that is looked at has its attention outside of graphs."""
        looked_at = self._looked_at() if self.on_device is not None else LookedAt.NOWHERE
        if looked_at is LookedAt.IN_ATTENTION:
            with _without_full_graphs(self.cudagraph_dispatcher):  # type: ignore[attr-defined]
                return super()._determine_batch_execution_and_padding(*args, **kwargs)  # type: ignore[misc]
        if looked_at is LookedAt.EVERYWHERE:
            kwargs["force_eager"] = True
        return super()._determine_batch_execution_and_padding(*args, **kwargs)  # type: ignore[misc]

    def _looked_at(self) -> LookedAt:
        if self.edited is None or self.edited.rows_in_use == 0 or self._made_up:
            return LookedAt.NOWHERE
        names, starts, positions = self._batch()
        rows = zip(positions.tolist(), np.diff(starts).tolist(), strict=True)
        return self.edited.looks_at(dict(zip(names, rows, strict=True)))

    def _build_attention_metadata(self, *args: Any, **kwargs: Any) -> Any:
        edits = self._step_edits()
        if self.on_device is not None:
            self.on_device.load(edits)
        with step.carrying(edits):
            return super()._build_attention_metadata(*args, **kwargs)  # type: ignore[misc]

    def _dummy_run(self, *args: Any, **kwargs: Any) -> Any:
        """As in `GPUModelRunner`: for capture, and for the sake of other data-parallel ranks."""
        self._made_up = True
        try:
            return super()._dummy_run(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._made_up = False

    def _step_edits(self) -> StepEdits | None:
        if self.edited is None or self.edited.rows_in_use == 0 or self._made_up:
            return None
        return self.edited.plan(*self._batch())

    def _batch(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Request ids, offsets into the flat tokens [requests + 1], and positions of first tokens."""
        batch = self.input_batch  # type: ignore[attr-defined]
        count = batch.num_reqs
        starts: np.ndarray = self.query_start_loc.np[: count + 1]  # type: ignore[attr-defined]
        return batch.req_ids[:count], starts, batch.num_computed_tokens_cpu[:count]

    def evict(self, events: Mapping[str, Event]) -> dict[str, int]:
        """Carry out events after their step's forward. Returns what `EVICTED` tells the scheduler."""
        most_kept: dict[str, int] = {}
        if self.edited is None:
            return most_kept
        batch = self.input_batch  # type: ignore[attr-defined]
        blocks: np.ndarray = batch.block_table[0].get_numpy_array()
        for request_id, event in events.items():
            row = blocks[batch.req_id_to_index[request_id]]
            kept = self.edited.evict(request_id, event.end, row, event.targets)
            if kept is None:
                continue
            most_kept[request_id] = kept
            # Both of vLLM's lists: the second one is read when the request has sat a step out.
            row[: len(event.targets)] = event.targets
            known = self.requests[request_id].block_ids[0]  # type: ignore[attr-defined]
            known[: len(event.targets)] = event.targets
        return most_kept


@contextmanager
def _without_full_graphs(dispatcher: Any) -> Iterator[None]:
    """While this is open, a step gets piecewise graphs, between which attention runs eagerly, or none."""
    stock = dispatcher.dispatch

    def dispatch(*args: Any, **kwargs: Any) -> Any:
        kwargs["invalid_modes"] = {CUDAGraphMode.FULL, *(kwargs.get("invalid_modes") or ())}
        return stock(*args, **kwargs)

    # In the instance, before the class's own.
    dispatcher.dispatch = dispatch
    try:
        yield
    finally:
        del dispatcher.dispatch
