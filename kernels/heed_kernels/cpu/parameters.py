"""What the compiled code of the CPU path is told: one block for a call, one for each unit of work.

Both are int64 in memory and hold sizes, addresses and codes of element types.
"""

from heed_kernels.cpu.vector import KEY_TILE
from heed_kernels.edits import SOURCES

(
    QUERY, OUTPUT, QUERY_STEP, OUTPUT_STEP, QUERY_TYPE, CACHE, BLOCK_STEP, HEAD_STEP, CACHE_TYPE,
    BLOCK_TABLE, BLOCK_TABLE_STEP, BLOCK_SIZE, UNITS, UNIT_COUNT, KV_HEADS, GROUP_HEADS, HEAD_DIM,
    SCALE_BITS, KEY_ROW, VALUE_ROW, KEY_OFFSET, VALUE_OFFSET, PHASE_START, RANGE_COUNT, RANGE_START,
    RANGE_GROUP, RANGE_SHIFT, RANGE_VISIBLE, RANGE_CLASS, VISIBLE, TRAILING, LINE, LINE_STEP, LINES,
    VECTORS, LOCAL_HEADS, SOURCE_COUNT, SOURCE_KEYS, SOURCE_RANGE, FOUND_COUNT, FOUND_KEYS,
    FOUND_RANGE, LAYERS, LAYER, MIX_HEADS, MIXES, INV_FREQ, HALF_ROTARY, INTERLEAVED, WORK,
    WORK_STEP, TAKEN, MULTIPLY_ADD, PRODUCT, BEGIN, TILE, LOG_SUM_EXP, MASS, TARGETS, TARGET_COUNT,
    KEPT, EVICTED_END, PARAMETERS,
) = range(63)  # fmt: skip
"""Columns of a call's parameters. *_STEP: bytes from a token, block, KV head, block-table row, slot of
this layer's lines or thread's memory to the next; UNITS: int32 [UNIT_COUNT, `ITEM_FIELDS` and more];
GROUP_HEADS: query heads of a KV head; QUERY_TYPE, CACHE_TYPE: codes of `vector`;
SCALE_BITS: a float64; KEY_ROW, VALUE_ROW and the offsets are the layout's, in elements; TAKEN: units
that threads have taken, 0 at the start; MULTIPLY_ADD, PRODUCT, BEGIN, TILE: addresses of the functions
of these names; LOG_SUM_EXP, MASS, TARGETS: where `observe` writes, 0: nowhere. The rest is the edit
table's, the plan's, the rope's.
"""

(
    TARGET_SLOT, TARGET_SUMS, TARGET_STEP, TARGET_FIRST, TARGET_END, TARGET_LINES, TARGET_FIELDS,
) = range(7)  # fmt: skip
"""A target of column sums: of which slot, int64 [wanted heads, keys], bytes from head to head, rows [first, end),
and int32 [local_heads]: each head's line of the sums, -1 where it is not wanted."""

ITEM_FIELDS = 5
"""int32 of a unit of attention, see `plan.Pattern.items`. One of an observation has two more: its first query
head, and how many."""

(
    SLOT, FIRST_TOKEN, ROWS, FIRST_ROW, BLOCK_ROW, PAGES, FIRST_HEAD, SINKS, WINDOW, ROLLING,
    EDITED, HIDING, WALKED, SPLIT, PHASES_HERE, CURSOR, TURNED_BY, RUNS, ANGLES, QUERIES, TURNED,
    SUMS, SUMS_BESIDE, LOGITS, EXTRA, SCRATCH, COLUMNS, LEFT_OUT, STATE, HOLE_START, HOLE_END,
    HEADS, UNIT_FIELDS,
) = range(33)  # fmt: skip
"""Fields of a unit. BLOCK_ROW: its line of the block table; PAGES: the KV head's part of the cache;
FIRST_HEAD, HEADS: its query heads, neighbours that share a KV head;
EDITED: logits may change; HIDING: some row does not see some range; WALKED: runs follow ranges and hole;
SPLIT: the destination of a transfer has sums of its own; PHASES_HERE: bits of the rows' phases; CURSOR:
the range that the tile begins in; TURNED_BY: the shift that TURNED holds; [HOLE_START, HOLE_END): keys
that an eviction let go. From RUNS to STATE, addresses in the thread's memory, V = ROWS x HEADS, vector
i = head x ROWS + row:

    RUNS           int64 [KEY_TILE, RUN_FIELDS]     keys of the tile that some row sees
    ANGLES         float64 [head_dim]               cosines, sines
    QUERIES, TURNED, SUMS, SUMS_BESIDE              float32 [V, head_dim]
    LOGITS, EXTRA  float32 [V, KEY_TILE]
    SCRATCH        float32 [KEY_TILE, head_dim]
    COLUMNS        float64 [KEY_TILE]
    LEFT_OUT       float32 [V, SOURCES]             logits of a transfer's source keys
    STATE          float32 [V, STATE_FIELDS]
"""

RUN_START, RUN_END, RUN_CLASS, RUN_SHIFT, RUN_FIELDS = range(5)
"""A run of keys, counted from the tile's first key."""

LARGEST, TOTAL, MASSES, MOVED, STATE_FIELDS = 0, 1, 2, 6, 8
"""Of a vector: largest logit, total weight, weights of up to four key classes, fraction to be moved."""


def thread_floats(vectors: int, head_dim: int) -> int:
    """Memory of a thread for units of at most so many vectors, in float32."""
    fixed = 2 * 32 + 2 * RUN_FIELDS * KEY_TILE + 2 * head_dim + KEY_TILE * (head_dim + 2)
    return fixed + vectors * (4 * head_dim + 2 * KEY_TILE + SOURCES + STATE_FIELDS)


def kept_floats(vectors: int, keys: int) -> int:
    """What follows `thread_floats` where column sums are wanted, in float32, for units that see `keys` keys:

    weights float32 [tiles, V, KEY_TILE]; largest float32 [tiles, V], the logit that a tile's weights are
    relative to.
    """
    return -(-keys // KEY_TILE) * vectors * (KEY_TILE + 1)
