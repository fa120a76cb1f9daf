"""Found keys in the reference: which keys hold for which rows, by definition."""

from collections.abc import Sequence

import torch

from heed_kernels.device import Found
from heed_kernels.edits import Edit, FindKeys, MassTransfer
from heed_kernels.reference.attention import (
    attend,
    attention_weights,
    found_keys,
    observed_columns,
)
from heed_kernels.segments import Segments


def found_by_segment(
    query: torch.Tensor, key: torch.Tensor, edits: Sequence[Edit], layer: int, scale: float
) -> list[tuple[int, Found]]:
    """The first row of each segment of a sequence and the keys that hold for its rows.

    query: [rows, query_heads, head_dim] and key: [rows, kv_heads, head_dim] of all rows so far, float64
    for a definition. One of the edits is a `FindKeys`.
    """
    (edit,) = (edit for edit in edits if isinstance(edit, FindKeys))
    segments = Segments.of(edit)
    observed = [edit for edit in edits if not isinstance(edit, MassTransfer)]
    before = attention_weights(query, key, observed, layer, scale).before

    def found_from(rows: int) -> Found:
        columns = observed_columns(edit, before[:, :rows, :rows])
        return found_keys(edit, columns, layer)

    nothing: Found = [[] for _ in range(query.shape[1])]
    result = [(0, found_from(segments.prompt) if segments.ahead else nothing)]
    for row in range(1, len(query)):
        if segments.begins(row):
            result.append((row, found_from(row)))
    return result


def attend_while_searching(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    edits: Sequence[Edit],
    layer: int,
    scale: float,
) -> torch.Tensor:
    """`attention.attend` of all rows of a sequence, each with the keys that are found for it."""
    starts = found_by_segment(query, key, edits, layer, scale)
    ends = [start for start, _ in starts[1:]] + [len(query)]
    return torch.cat(
        [
            attend(query[start:end], key[:end], value[:end], edits, layer, scale, None, found)
            for (start, found), end in zip(starts, ends, strict=True)
        ]
    )
