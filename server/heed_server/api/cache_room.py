"""What the KV cache of an engine can hold of a request, told before it runs."""

from dataclasses import dataclass

from heed_interventions.errors import InterventionError, join_path
from heed_kernels.edits import Edit, VisibleKeys
from heed_kernels.evict import Evict
from heed_server.engine.scheduling.hidden_blocks import Window


@dataclass(frozen=True)
class CacheRoom:
    """blocks: how many the cache has; block_size: tokens of each. 0 where that is not known."""

    blocks: int = 0
    block_size: int = 0

    def check(self, edit: Edit, prompt: int, tokens: int) -> None:
        """Whether a request with this edit can ever run to its end.

        prompt: P, in tokens; tokens: of prompt and answer together, at most.
        Raises `InterventionError` (reason `context`) where it cannot.
        """
        whole = self.blocks * self.block_size
        if isinstance(edit, VisibleKeys) and tokens > whole > 0:
            self._check_window(edit)
        if isinstance(edit, Evict) and prompt > whole > 0:
            raise InterventionError(
                f"keys are evicted when the whole prompt is computed, and a prompt of {prompt} tokens "
                f"does not fit into the KV cache of {self.blocks} blocks of {self.block_size} tokens",
                join_path("interventions", edit.source),
                reason="context",
            )

    def _check_window(self, edit: VisibleKeys) -> None:
        # Two rows: one may be under way while the next is scheduled.
        needed = Window(edit.sinks, edit.window).most_blocks(2, self.block_size)
        if needed > self.blocks:
            raise InterventionError(
                f"{edit.sinks} sinks and a window of {edit.window} take {needed} blocks of "
                f"{self.block_size} tokens in the KV cache, and it has {self.blocks}",
                join_path("interventions", edit.source, "window"),
                reason="context",
            )
