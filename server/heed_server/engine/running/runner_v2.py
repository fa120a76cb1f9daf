"""V2 model-runner seam: the model state, which vLLM tells who enters and leaves and what each step holds.

A request's slot in the edit table is the runner's own index of it (`req_index`), which it keeps from
entering to leaving.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial, wraps
from typing import Any

from vllm.config import CUDAGraphMode
from vllm.v1.worker.gpu import model_states
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor

from heed_server.engine.books.edited_requests import EditedRequests, LookedAt
from heed_server.engine.messages import Event
from heed_server.engine.payload import packed_in, unpack
from heed_server.engine.running import step
from heed_server.engine.running.device_edits import DeviceEdits
from heed_server.engine.running.step import StepEdits


class EditsInModelState:
    """Put before the model-state class that vLLM chose for the model."""

    edited: EditedRequests | None = None
    """None until `edit_with`, and on a model whose requests cannot be edited."""
    on_device: DeviceEdits
    finished: Collection[str] = ()
    """Requests that end with this step; set by the runner before it removes them."""

    def edit_with(self, edited: EditedRequests, on_device: DeviceEdits) -> None:
        """From now on requests may be edited."""
        self.edited, self.on_device = edited, on_device

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        """As in `ModelState`; a request comes through here again after preemption."""
        super().add_request(req_index, new_req_data)  # type: ignore[misc]
        params = new_req_data.sampling_params
        packed = packed_in(params.extra_args) if params is not None else None
        if packed is not None and self.edited is not None:
            self.edited.enter(
                new_req_data.req_id,
                unpack(packed),
                new_req_data.num_computed_tokens,
                req_index,
                max_tokens=params.max_tokens,
                features=new_req_data.mm_features,
            )

    def remove_request(self, req_id: str) -> None:
        """As in `ModelState`: called for finished and for preempted requests, and before each adding."""
        super().remove_request(req_id)  # type: ignore[misc]
        if self.edited is not None:
            self.edited.leave(req_id, finished=req_id in self.finished)

    def prepare_attn(self, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        """As in `ModelState`: called once per step, after all requests have entered and left."""
        prepare = super().prepare_attn  # type: ignore[misc]
        if self.edited is None:
            return prepare(input_batch, *args, **kwargs)
        edits = self._step_edits(self.edited, input_batch)
        self.on_device.load(edits)
        with step.carrying(edits):
            return prepare(input_batch, *args, **kwargs)

    def _step_edits(self, edited: EditedRequests, input_batch: Any) -> StepEdits | None:
        """The edited part of a step, from the host's arrays.

        They belong to this very step although scheduling runs ahead of the device: the runner has
        just filled them from the scheduler's output that it executes. What lags behind are the
        sampled tokens; positions do not depend on them, since each sampled token is kept
        (speculative decoding is refused in `model_support.py`, and only it makes
        `num_computed_tokens_np` a mere upper bound).

        Requests are recognised by name. A batch padded for a graph has fewer names than rows. The
        names in a made-up batch (one that is captured, or run for the sake of other data-parallel
        ranks) are nobody's, although its `idx_mapping_np` points at slots that may be in use.
        """
        return edited.plan(
            input_batch.req_ids,
            input_batch.query_start_loc_np,
            input_batch.num_computed_tokens_np,
        )


class EditsInRunner:
    """Put before the V2 runner class."""

    model_state: EditsInModelState
    req_states: Any
    block_tables: Any
    cudagraph_manager: Any
    parallel_config: Any

    def edit_with(self, edited: EditedRequests, on_device: DeviceEdits) -> None:
        """From now on requests may be edited."""
        self.model_state.edit_with(edited, on_device)

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """As in `GPUModelRunner`, which makes the model state here."""
        with _edits_in_model_states():
            super().load_model(*args, **kwargs)  # type: ignore[misc]

    def finish_requests(self, scheduler_output: Any) -> None:
        """As in `GPUModelRunner`, which removes finished and preempted requests alike."""
        self.model_state.finished = scheduler_output.finished_req_ids
        super().finish_requests(scheduler_output)  # type: ignore[misc]

    def gather_batch_req_state(self, scheduler_output: Any, dummy_run: bool) -> Any:
        """As in `GPUModelRunner`, which chooses the step's graph next: none that has the attention of a step
        that is looked at."""
        manager: Any = self.cudagraph_manager
        if manager is not None:
            # In the instance, before the class's own. Nobody else puts anything there.
            vars(manager).pop("dispatch", None)
            looked_at = LookedAt.NOWHERE if dummy_run else self._looked_at(scheduler_output)
            # Data-parallel ranks agree on eager steps, but not on how a piecewise graph is padded.
            alone = self.parallel_config.data_parallel_size == 1
            if looked_at is LookedAt.IN_ATTENTION and alone:
                manager.dispatch = partial(without_full_graph, manager.dispatch)
            elif looked_at is not LookedAt.NOWHERE:
                manager.dispatch = without_graph
        return super().gather_batch_req_state(scheduler_output, dummy_run)  # type: ignore[misc]

    def _looked_at(self, scheduler_output: Any) -> LookedAt:
        edited = self.model_state.edited
        if edited is None or edited.rows_in_use == 0:
            return LookedAt.NOWHERE
        return edited.looks_at(rows_of(scheduler_output))

    def evict(self, events: Mapping[str, Event]) -> dict[str, int]:
        """Carry out events after their step's forward. Returns what `EVICTED` tells the scheduler.

        The first blocks in a request's row of the block table become the targets. All else stays: its number
        of blocks, its positions, and so the slots of its rows to come, which lie in later blocks.
        """
        most_kept: dict[str, int] = {}
        edited = self.model_state.edited
        if edited is None:
            return most_kept
        table = self.block_tables.block_tables[0]
        for request_id, event in events.items():
            index = self.req_states.req_id_to_index[request_id]
            row = table.gpu[index].cpu().numpy()
            kept = edited.evict(request_id, event.end, row, event.targets)
            if kept is None:
                continue
            most_kept[request_id] = kept
            table.stage_write(index, 0, event.targets)
        if most_kept:
            # Not with the next step: the row may be another request's by then, and writes that are applied
            # together have no order.
            self.block_tables.apply_staged_writes()
        return most_kept


def rows_of(scheduler_output: Any) -> dict[str, tuple[int, int]]:
    """By request id the position of the step's first row, and how many rows it has."""
    cached = scheduler_output.scheduled_cached_reqs
    first = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    first |= {new.req_id: new.num_computed_tokens for new in scheduler_output.scheduled_new_reqs}
    return {
        name: (first[name], rows) for name, rows in scheduler_output.num_scheduled_tokens.items()
    }


def without_full_graph(
    stock: Callable[..., BatchExecutionDescriptor],
    num_reqs: int,
    num_tokens: int,
    uniform_token_count: int | None,
    num_active_loras: int,
    **rest: Any,
) -> BatchExecutionDescriptor:
    """As `CudaGraphManager.dispatch`, which is `stock`: a piecewise graph, between whose pieces attention runs
    eagerly, or none."""
    # Graphs of decode steps alone are full ones; a batch that is not uniform gets none of them.
    rest["max_query_len"] = None
    made = stock(num_reqs, num_tokens, None, num_active_loras, **rest)
    if made.cg_mode == CUDAGraphMode.PIECEWISE:
        return made
    return without_graph(num_reqs, num_tokens, None, num_active_loras)


def without_graph(
    num_reqs: int,
    num_tokens: int,
    uniform_token_count: int | None,
    num_active_loras: int,
    **_: Any,
) -> BatchExecutionDescriptor:
    """As `CudaGraphManager.dispatch`: the step runs eagerly. Data-parallel ranks then all do."""
    return BatchExecutionDescriptor(
        cg_mode=CUDAGraphMode.NONE,
        num_tokens=num_tokens,
        num_reqs=num_reqs,
        num_active_loras=num_active_loras,
    )


@cache
def with_edits(state: type) -> type:
    """`state`, a subclass of `ModelState`, with edits."""
    return type(state.__name__, (EditsInModelState, state), {"__module__": __name__})


@contextmanager
def _edits_in_model_states() -> Iterator[None]:
    """While this is open, whatever class vLLM chooses for a model gets edits."""
    stock = model_states.resolve_model_state_cls

    @wraps(stock)
    def resolve_model_state_cls(*args: Any, **kwargs: Any) -> type:
        return with_edits(stock(*args, **kwargs))

    model_states.resolve_model_state_cls = resolve_model_state_cls
    try:
        yield
    finally:
        model_states.resolve_model_state_cls = stock
