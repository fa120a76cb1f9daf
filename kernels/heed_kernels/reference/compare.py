"""What edits that compare heads mean, on dense tensors: factors on the outputs of a layer's heads."""

from collections.abc import Sequence

import torch

from heed_kernels.edits import Edit, GazeShift, HeadChoice, HeadRanking


def ranked(edit: HeadRanking, query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    """Factors [rows, query_heads] for every row, from logits before any edit.

    query: [rows, query_heads, head_dim]; key: [keys, query_heads, head_dim].
    """
    members = list(_keys(edit))
    logits = torch.einsum("qhd,khd->qhk", query, key[members]) * scale
    first = logits.sum(dim=2).argsort(dim=1, descending=True, stable=True)[:, : edit.kept]
    factors = torch.full(query.shape[:2], edit.factor, dtype=query.dtype)
    return factors.scatter(1, first, 1.0)


def masked(edit: HeadChoice, weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """[query_heads, head_dim]: what the row at hand gives without the edit's keys.

    weights: of that row without mass transfer, [query_heads, keys]; value: [keys, query_heads, head_dim].
    """
    without = weights.clone()
    without[:, list(_keys(edit))] = 0
    without = without / without.sum(dim=1, keepdim=True).clamp(min=1e-30)
    return torch.einsum("hk,khd->hd", without, value)


def chosen(edit: HeadChoice, output: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
    """Factors [query_heads] that hold from the row at hand on.

    output: what that row gives with all other edits; beside: without the image; each [query_heads, head_dim].
    """
    distance, size = (output - beside).norm(dim=1), beside.square().sum(dim=1)
    candidates = torch.ones_like(distance, dtype=torch.bool)
    if edit.outliers_out and len(distance) > 1:
        candidates = ~(_stands_out(distance) & _stands_out(size))
    order = distance.argsort(descending=True, stable=True)
    factors = torch.ones_like(distance)
    factors[order[candidates[order]][: edit.chosen]] = edit.gain
    return factors


def compared(
    edits: Sequence[Edit],
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """`output` [rows, query_heads, head_dim] after the edits among `edits` that compare heads.

    weights: without mass transfer, [query_heads, rows, keys]; key, value: [keys, query_heads, head_dim].
    The row at which a `HeadChoice` chooses has to be among these rows. A `GazeShift` needs the weights of
    another layer, which are not here: its definition is `tests/reference/vision_definition.py`.
    """
    assert not any(isinstance(edit, GazeShift) for edit in edits), "another layer is not here"
    first = len(key) - len(query)
    for edit in edits:
        if not isinstance(edit, HeadRanking | HeadChoice) or not edit.on.masks[layer]:
            continue
        held = torch.arange(first, len(key))
        held = (held >= edit.rows.start) & (held < edit.rows.end)
        if isinstance(edit, HeadRanking):
            factors = ranked(edit, query, key, scale)
        elif not held.any():
            continue
        else:
            row = edit.at - first
            assert 0 <= row < len(query), "the row at which heads are chosen is not there"
            assert not edit.twin, "another request's outputs are not here: see `chosen`"
            beside = masked(edit, weights[:, row], value)
            factors = chosen(edit, output[row], beside)[None]
        output = torch.where(held[:, None, None], output * factors[:, :, None], output)
    return output


def _stands_out(values: torch.Tensor) -> torch.Tensor:
    return values > values.mean() + values.std()


def _keys(edit: HeadRanking | HeadChoice) -> Sequence[int]:
    return [key for start, end in edit.keys.ranges for key in range(start, end)]
