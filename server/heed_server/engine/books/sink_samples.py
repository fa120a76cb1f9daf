"""How much attention edited rows pay to the first token, sampled on any device. No vLLM here."""

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.device import LayerInputs
from heed_kernels.evict import Evict
from heed_kernels.eviction.threads import one_thread
from heed_kernels.eviction.window import ObservedRows
from heed_kernels.inspection import of_logits
from heed_kernels.plan import BLOCK_TABLE_ROW, FIRST_POSITION, FIRST_TOKEN, ROWS, SLOT, Plan
from heed_kernels.table import EditTable
from heed_server.engine.payload import Payload

SAMPLED_STEPS = 64
"""So many steps after a sample the last row of one request is looked at again. On a GPU that waits for a step
whose attention is not in a CUDA graph: no step loses its graph for it."""
MOST_KEYS = 4096
"""Rows with more keys are left alone: their weights are made again for the sample."""
SAMPLES_KEPT = 512
"""Samples kept until the API process takes them; the oldest go first."""


@dataclass(frozen=True)
class SampledRow:
    """The last row that a step has of one request: an observer of the step.

    item: int32 [5], as in `plan.Pattern.items`. samples: where each layer's goes.
    """

    table: EditTable
    item: NDArray[np.int32]
    samples: "SinkSamples"

    def load(self, plan: Plan) -> None:
        """See `device_edits.DeviceObserver`: there is nothing to be prepared."""

    @one_thread
    def before_edits(self, layer: int, inputs: LayerInputs) -> None:
        """See `step.Observer`. Nothing waits for the device; one without memory gives no sample."""
        last = int(self.item[ROWS]) - 1
        token = int(self.item[FIRST_TOKEN]) + last
        position = int(self.item[FIRST_POSITION]) + last
        places = np.arange(position + 1)
        row = ObservedRows(
            self.table, int(self.item[SLOT]), layer, position, places, 0, inputs.scale
        )
        query = inputs.query[token].float()  # [local_query_heads, head_dim]
        try:
            key = inputs.pages(int(self.item[BLOCK_TABLE_ROW])).read(places, "key").float()
            self.samples.add(row.weights(query[None], key, 0)[:, 0, 0].mean())
        except torch.OutOfMemoryError:
            return


class SinkSamples:
    """The samples of one worker: mean weight of position 0 over its heads, one for each layer.

    Only requests whose edits are of logits alone, and whose keys stay where they are.
    """

    def __init__(self, table: EditTable, every: int = SAMPLED_STEPS) -> None:
        self._table, self._every, self._steps = table, every, 0
        self._slots: set[int] = set()
        self._samples: deque[torch.Tensor] = deque(maxlen=SAMPLES_KEPT)
        self._arriving: tuple[torch.Tensor, torch.cuda.Event] | None = None
        """Samples on their way from a GPU, and what says that they are here."""

    def enter(self, slot: int, payload: Payload) -> None:
        """A request has got its slot."""
        if of_logits(payload.edits) and not any(isinstance(e, Evict) for e in payload.edits):
            self._slots.add(slot)

    def leave(self, slot: int) -> None:
        """The slot's request is gone."""
        self._slots.discard(slot)

    def observers(self, items: NDArray[np.int32]) -> tuple[SampledRow, ...]:
        """The row of a step that is looked at, if one is.

        items: int32 [requests, 5], all rows that the step has of each edited request, see
        `plan.Pattern.items`.
        """
        self._steps += 1
        if self._steps < self._every:
            return ()
        for item in items:
            end = int(item[FIRST_POSITION] + item[ROWS])
            if int(item[SLOT]) in self._slots and end <= MOST_KEYS:
                return (SampledRow(self._table, item, self),)
        return ()

    def add(self, sample: torch.Tensor) -> None:
        """One layer's, a number on the model's device."""
        self._samples.append(sample)
        self._steps = 0

    def take(self) -> list[float]:
        """Samples, once. Those of a GPU are sent off, and come with the first call after they have arrived."""
        taken: list[float] = []
        if self._arriving is not None and self._arriving[1].query():  # type: ignore[no-untyped-call]
            taken = self._arriving[0].tolist()
            self._arriving = None
        if self._samples and self._arriving is None:
            samples = torch.stack(list(self._samples))
            self._samples.clear()
            if not samples.is_cuda:
                return samples.tolist()
            host = torch.empty(samples.shape, dtype=samples.dtype, pin_memory=True)
            host.copy_(samples, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._arriving = host, event
        return taken
