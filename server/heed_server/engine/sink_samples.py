"""How much attention edited rows pay to the first token, sampled. No vLLM here."""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heed_kernels.cpu.pages import Pages
from heed_kernels.cpu.search import LayerInputs
from heed_kernels.evict import Evict
from heed_kernels.eviction.threads import one_thread
from heed_kernels.eviction.window import ObservedRows
from heed_kernels.inspection import of_logits
from heed_kernels.plan import BLOCK_TABLE_ROW, FIRST_POSITION, FIRST_TOKEN, ROWS, SLOT
from heed_kernels.table import EditTable
from heed_server.engine.payload import Payload

SAMPLED_STEPS = 64
"""In one step out of so many the last row of one request is looked at."""
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
    samples: "deque[float]"

    @one_thread
    def before_edits(self, layer: int, inputs: LayerInputs) -> None:
        """See `step.Observer`."""
        last = int(self.item[ROWS]) - 1
        token = int(self.item[FIRST_TOKEN]) + last
        position = int(self.item[FIRST_POSITION]) + last
        table, places = self.table, np.arange(position + 1)
        blocks = inputs.block_table[int(self.item[BLOCK_TABLE_ROW])]
        pages = Pages.of(inputs.kv_cache, blocks, inputs.layout)
        row = ObservedRows(table, int(self.item[SLOT]), layer, position, places, 0, inputs.scale)
        query = inputs.query[token].float()  # [local_query_heads, head_dim]
        weights = row.weights(query[None], pages.read(places, "key").float(), 0)
        self.samples.append(float(weights[:, 0, 0].mean()))


class SinkSamples:
    """The samples of one worker: mean weight of position 0 over its heads, one for each layer.

    Only requests whose edits are of logits alone, and whose keys stay where they are.
    """

    def __init__(self, table: EditTable, every: int = SAMPLED_STEPS) -> None:
        self._table, self._every, self._steps = table, every, 0
        self._slots: set[int] = set()
        self._samples: deque[float] = deque(maxlen=SAMPLES_KEPT)

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
        if self._steps % self._every:
            return ()
        for item in items:
            end = int(item[FIRST_POSITION] + item[ROWS])
            if int(item[SLOT]) in self._slots and end <= MOST_KEYS:
                return (SampledRow(self._table, item, self._samples),)
        return ()

    def take(self) -> list[float]:
        """The samples, once."""
        taken = list(self._samples)
        self._samples.clear()
        return taken
