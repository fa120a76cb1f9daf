"""Which KV blocks no later row of a streaming request reads, and how many it holds at most. No vLLM here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Window:
    """What the rows of a request see: row q sees the keys k < sinks and k > q - window."""

    sinks: int
    window: int

    def hidden_blocks(self, row: int, block_size: int) -> range:
        """Blocks of which no key is seen by `row` or any later row."""
        first = blocks_for(self.sinks, block_size)
        end = max(0, row - self.window + 1) // block_size
        return range(first, max(first, end))

    def most_blocks(self, tokens: int, block_size: int) -> int:
        """Blocks held at most, wherever the rows stand.

        tokens: at most so many are being computed beyond the row that hidden blocks are judged by.
        """
        # Keys of so many neighbouring tokens lie in one block more when they begin inside of one.
        neighbours = blocks_for(self.window - 1 + tokens, block_size) + 1
        return blocks_for(self.sinks, block_size) + neighbours

    def most_tokens(self, blocks: int, block_size: int) -> int:
        """The largest `tokens` with `most_blocks(tokens) <= blocks`; below 1 where there is none."""
        neighbours = blocks - blocks_for(self.sinks, block_size) - 1
        return neighbours * block_size - (self.window - 1)


def window_in(packed: Mapping[str, Any] | None) -> Window | None:
    """The window of a packed payload (`payload.pack`), or None where its rows see all keys."""
    # Edits may be long lists of keys; only this one is of interest here.
    for edit in packed["edits"] if packed is not None else ():
        if edit["kind"] == "visible_keys":
            return Window(edit["sinks"], edit["window"])
    return None


def blocks_for(tokens: int, block_size: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // block_size)
