"""When a request evicts: one rule, which the scheduler's side and the workers' side both ask.

An event is a number of computed tokens, its end. It takes place after the step that computes the row
before it, and no step goes on beyond it.
"""

from dataclasses import dataclass

from heed_kernels.evict import Evict


@dataclass(frozen=True)
class EvictionEvents:
    """The events of one request.

    prompt_length: P, the end of the first event.
    again: every multiple of the block size beyond P is an event too.
    fewest: the smallest budget of a layer; a request that has no more keys lets none go. Tokens.
    rows: no more are ever computed, the prompt's included; an event there would be for nobody.
    """

    prompt_length: int
    again: bool
    fewest: int
    rows: int

    @classmethod
    def of(cls, edit: Evict, rows: int) -> "EvictionEvents":
        """The events of a request that is edited so."""
        return cls(edit.rows.start, edit.again, min(edit.counts), rows)

    def next_after(self, computed: int, block_size: int) -> int | None:
        """The first event that ends beyond `computed` tokens; None where there is none."""
        end = self.prompt_length
        if computed >= end:
            if not self.again:
                return None
            end = (computed // block_size + 1) * block_size
        return end if end < self.rows else None

    def ends_at(self, end: int, block_size: int) -> bool:
        """Whether an event ends when `end` tokens are computed, at least 1."""
        return self.next_after(end - 1, block_size) == end

    def evicts_at(self, end: int, block_size: int) -> bool:
        """Whether keys are let go when `end` tokens are computed, at least 1.

        An event leaves each layer its budget, and every later row adds a key. So a layer has more keys
        than its budget whenever more tokens than that are computed.
        """
        return end > self.fewest and self.ends_at(end, block_size)
