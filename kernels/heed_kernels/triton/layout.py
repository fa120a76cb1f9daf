"""Where the device's copy of the edit table and a step's work keep what: offsets in int32 words.

One line of `DeviceTable.records` per slot:

    0 ... 9         the fields below
    SOURCE_KEYS     int32 [SOURCES]         `EditTable.source_keys`
    SOURCE_RANGE    int32 [SOURCES]         `EditTable.source_range`
    RANGE_START     int32 [RANGES]          `EditTable.range_start`
    RANGE_BITS      int32 [RANGES]          group | visible << VISIBLE_AT | class << CLASS_AT
    RANGE_SHIFT     int32 [RANGES]          `EditTable.range_shift`
    LINE            int32 [layers, PHASES]  `EditTable.line`, with ACTIVE set where rows are active
    and after it    int32 [layers, local_kv_heads]  `EditTable.kept`

One line of a slot's `DeviceTable.found` per (layer, local query head): a count, then keys, then ranges.
"""

from triton.language import constexpr

from heed_kernels import compiled, edits, ranges

PHASES = constexpr(compiled.PHASES)
SOURCES = constexpr(edits.SOURCES)
OPEN = constexpr(edits.OPEN)
FIELDS = constexpr(compiled.FIELDS)
GROUP_FIELDS = constexpr(compiled.GROUP_FIELDS)
GAIN = constexpr(compiled.GAIN)
TRAILING_BIAS = constexpr(compiled.TRAILING_BIAS)
FRACTION = constexpr(compiled.FRACTION)
RATIO = constexpr(compiled.RATIO)
LEAST = constexpr(compiled.LEAST)
MIX = constexpr(compiled.MIX)
SCALE = constexpr(compiled.SCALE)
ABSOLUTE = constexpr(compiled.ABSOLUTE)
BIAS = constexpr(compiled.BIAS)
DESTINATION = constexpr(ranges.DESTINATION)
NUMERATOR = constexpr(ranges.NUMERATOR)
DENOMINATOR = constexpr(ranges.DENOMINATOR)
PROBE, PROBES = constexpr(ranges.PROBE), constexpr(ranges.PROBES)

RANGE_COUNT = constexpr(0)
SINKS = constexpr(1)
WINDOW = constexpr(2)
ROLLING = constexpr(3)
TRAILING_FIRST = constexpr(4)
TRAILING_WINDOW = constexpr(5)
SOURCE_COUNT = constexpr(6)
TRANSFER = constexpr(7)
"""0: no transfer; WHOLE: to every key; PART: to some of the keys."""
WHOLE, PART = constexpr(1), constexpr(2)
SHIFTED = constexpr(8)
"""Whether any range has a shift."""
EVICTED_END = constexpr(9)
"""`EditTable.evicted_end`."""

SOURCE_KEYS = constexpr(16)
SOURCE_RANGE = constexpr(16 + edits.SOURCES)
RANGE_START = constexpr(16 + 2 * edits.SOURCES)
RANGE_BITS = constexpr(16 + 2 * edits.SOURCES + ranges.RANGES)
RANGE_SHIFT = constexpr(16 + 2 * edits.SOURCES + 2 * ranges.RANGES)
LINE = constexpr(16 + 2 * edits.SOURCES + 3 * ranges.RANGES)
VISIBLE_AT, CLASS_AT = constexpr(8), constexpr(16)
ACTIVE = constexpr(1 << 30)

FOUND_WORDS = constexpr(1 + 2 * edits.SOURCES)

# A step's work: its head, its waves, then units of prompt rows, generated rows and their splits,
# packed one after the other so that one copy of a prefix brings all of them.
TILE_COUNT, TILE_AT, ROW_AT, SPLIT_AT = constexpr(0), constexpr(1), constexpr(2), constexpr(3)
WAVES = constexpr(8)
WAVE_WORDS = constexpr(4)
"""First split, splits, first row, rows."""

UNIT_WORDS = constexpr(8)
SLOT, TOKEN, ROWS, POSITION, TABLE_ROW, PHASE = (constexpr(i) for i in range(6))
FIRST_SPLIT, SPLIT_KEYS = constexpr(6), constexpr(7)
"""Of a generated row: its first split, counted within its wave, and the keys of each split."""

SPLITS = constexpr(32)
"""Most splits of a generated row."""
LEAST_SPLIT = constexpr(256)
"""Keys of a split of a short context."""

# What splits leave for their merge, float32 per split and head.
SUMS = constexpr(5)
"""Where attended: m, l, and the masses of destination, numerator and denominator."""
MEASURES = constexpr(2 + ranges.PROBES)
"""Where observed: m, l, and the masses of the probes."""

COLUMN_UNIT = constexpr(2.0**31)
"""Columns are integers in units of 2^-31, because integer addition is associative: the same bits however
the rows are scheduled. 2^31 rows of weight 1 stay below 2^63; a weight is rounded by at most 2^-32."""
