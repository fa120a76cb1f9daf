"""How much a request that evicts holds from step to step."""

from heed_kernels.evict import ColumnScore, Evict, ExpectedScore, WindowScore
from heed_kernels.eviction.scores import GROUP
from heed_kernels.table import EditTable


def held_bytes(evict: Evict, table: EditTable, head_dim: int, rows: int) -> int:
    """Bytes on one rank, at most: the same on every rank. rows: the request computes no more."""
    score, prompt = evict.score, evict.rows.start
    if isinstance(score, ColumnScore):
        keys = 1 << (rows - 1).bit_length() if evict.again else prompt
        return 8 * table.layers * table.local_query_heads * keys
    if isinstance(score, ExpectedScore):
        squares = head_dim * head_dim if score.covariance else 0
        of_head = squares + (GROUP + 1) * head_dim
        return 8 * table.layers * table.local_query_heads * of_head
    if isinstance(score, WindowScore):
        return 4 * table.layers * table.local_kv_heads * (prompt if not evict.again else rows)
    return 0
