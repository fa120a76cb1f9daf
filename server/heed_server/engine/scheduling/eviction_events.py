"""What a request's evictions ask of steps and blocks, and which blocks they let go. No vLLM here.

Symbols as in `heed_kernels/evict.py`; when a request evicts is said in `heed_kernels/events.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heed_kernels.edits import OPEN
from heed_kernels.events import EvictionEvents
from heed_server.engine.scheduling.hidden_blocks import blocks_for


@dataclass(frozen=True)
class EvictionPolicy(EvictionEvents):
    """What of an `Evict` concerns blocks and steps.

    most: no head ever keeps more at an event. Tokens.
    together: the last so many prompt rows are computed in one step.
    every_row: no prompt row comes out of the prefix cache.
    """

    most: int
    together: int
    every_row: bool

    def rows_together(self, computed: int) -> int:
        """How many rows a step that begins after `computed` ones has to hold, at least."""
        if max(0, self.prompt_length - self.together) <= computed < self.prompt_length:
            return self.prompt_length - computed
        return 1

    def chunk(self, computed: int, count: int, block_size: int) -> int:
        """How many of `count` tokens after the first `computed` ones one step may compute.

        count: at least `rows_together`.
        """
        event = self.next_after(computed, block_size)
        if event is not None:
            count = min(count, event - computed)
        last = max(0, self.prompt_length - self.together)
        if last < computed + count < self.prompt_length:
            return max(0, last - computed)
        return count

    @property
    def cached_rows(self) -> int:
        """Prompt rows that may come out of the prefix cache, at most."""
        return 0 if self.every_row else max(0, self.prompt_length - self.together)

    def target_blocks(self, end: int, block_size: int) -> int:
        """The survivors of the event at `end` lie in the request's first so many blocks."""
        return blocks_for(min(self.most, end), block_size)

    def hidden_blocks(self, end: int, kept: int, block_size: int) -> range:
        """Blocks that no row from `end` on reads.

        kept: the most keys that any head kept at the event at `end`.
        """
        # A later event may keep more than this one, and moves keys in place.
        first = blocks_for(self.most if self.again else kept, block_size)
        return range(first, max(first, end // block_size))

    def most_blocks(self, tokens: int, block_size: int) -> int:
        """Blocks held at most on the way to `tokens` computed ones, if none of them are shared."""
        whole = blocks_for(tokens, block_size)
        prompt = blocks_for(min(tokens, self.prompt_length), block_size)
        if self.again:
            return max(prompt, min(whole, blocks_for(self.most, block_size) + 1))
        if not self.evicts_at(self.prompt_length, block_size):
            return whole
        kept = self.target_blocks(self.prompt_length, block_size)
        return max(prompt, min(whole, kept + whole - self.prompt_length // block_size))


def rows_at_most(prompt_length: int, max_tokens: int | None) -> int:
    """Rows that a request of so many tokens computes, the prompt's included: that of its last token never
    is. max_tokens: of the answer; None for no limit."""
    return OPEN if max_tokens is None else prompt_length + max_tokens - 1


def eviction_in(
    packed: Mapping[str, Any] | None, max_tokens: int | None = None
) -> EvictionPolicy | None:
    """The policy of a packed payload (`payload.pack`), or None where all keys are kept: no row of an answer
    of one token reads what an event would leave. max_tokens: as in `rows_at_most`."""
    for edit in packed["edits"] if packed is not None else ():
        if edit["kind"] == "evict":
            rows = rows_at_most(edit["rows"][0], max_tokens)
            if rows <= edit["rows"][0]:
                return None
            return EvictionPolicy(
                prompt_length=edit["rows"][0],
                again=edit["again"],
                fewest=min(edit["counts"]),
                rows=rows,
                most=edit["most"],
                together=edit["together"],
                every_row=edit["every_row"],
            )
    return None
