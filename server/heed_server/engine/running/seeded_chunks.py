"""CPU runner seam: requests with a `seed` whose prompt is computed in chunks.

After each chunk but the last, vLLM throws the sampled token away and moves the request's generator back
by an offset, which generators on the CPU do not have: the worker would die of it. Here their whole
state is put back instead, which is what the offset is for.
"""

from typing import Any

import numpy as np


class SeededChunks:
    """Put before vLLM's CPU runner class."""

    input_batch: Any
    discard_request_mask: Any

    def _sample(self, *args: Any, **kwargs: Any) -> Any:
        thrown_away = self._thrown_away()
        states = {row: generator.get_state() for row, generator in thrown_away.items()}
        result = super()._sample(*args, **kwargs)  # type: ignore[misc]
        for row, generator in thrown_away.items():
            generator.set_state(states[row])
        return result

    def _bookkeeping_sync(self, *args: Any, **kwargs: Any) -> Any:
        generators: dict[int, Any] = self.input_batch.generators
        thrown_away = self._thrown_away()
        for row in thrown_away:
            del generators[row]
        try:
            return super()._bookkeeping_sync(*args, **kwargs)  # type: ignore[misc]
        finally:
            generators.update(thrown_away)

    def _thrown_away(self) -> dict[int, Any]:
        """Generators, by row of the batch, of the requests whose prompt goes on in another step."""
        generators: dict[int, Any] = self.input_batch.generators
        if not generators:
            return {}
        rows = np.flatnonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])
        return {int(row): generators[int(row)] for row in rows if int(row) in generators}
