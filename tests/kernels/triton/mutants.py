# ruff: noqa: E501, E741 (a mutant is a line)
"""Break the kernels in one place at a time; every break must turn a test red. Prints the score.

    python tests/kernels/triton/mutants.py [--sample N] [--only WORD]

Each mutant is made in a copy of the packages; the tests that look at what it breaks run against it. A
mutant that no longer runs proves nothing: what kills it has to be an assertion. Exits with 1 where one
is not killed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[3]
P, S, B, O = "test_primitives.py", "test_scheduling.py", "test_bounds.py", "test_observe.py"
E, F, V, C = "test_evicted.py", "test_searching.py", "test_evicting.py", "test_factors.py"
G, A = "test_captured.py", "test_addresses.py"

FAILURE = re.compile(r"^FAILED \S.* - (AssertionError|assert |Failed: DID NOT RAISE)", re.MULTILINE)
"""How pytest sums up a test that failed by an assertion."""

MUTANTS = [
    # file, what stands there, what stands there instead, tests that must notice
    ("walk.py", "(k[None, :] <= row[:, None])", "(k[None, :] < row[:, None])", P, "prompt_rows and gain"),
    ("walk.py", "k[None, :] > (row - behind)", "k[None, :] >= (row - behind)", P, "prompt_rows and window"),
    ("walk.py", "within = (k >= lo) & (k < hi)", "within = (k >= lo) & (k <= hi)", P, "prompt_rows and holes"),
    ("walk.py", "within = (k >= lo) & (k < hi)", "within = (k > lo) & (k < hi)", P, "prompt_rows and holes"),
    ("walk.py", "within = (k >= lo) & (k < hi)", "within = k >= lo", P, "prompt_rows and bias"),
    ("walk.py", "while start < high:", "while start < high - 1:", P, "generated_rows and scattered"),
    ("walk.py", "(kind & FIRST_BIT * 2) != 0", "(kind & FIRST_BIT) != 0", P, "prompt_rows and gate"),
    ("walk.py", "(kind & FIRST_BIT * 4) != 0", "(kind & FIRST_BIT * 2) != 0", P, "prompt_rows and gate"),
    ("walk.py", "((bits >> CLASS_AT) & DESTINATION) != 0", "((bits >> CLASS_AT) & 2) != 0", P, "prompt_rows and scaled"),
    ("walk.py", "((bits >> (VISIBLE_AT + phase)) & 1) != 0", "((bits >> VISIBLE_AT) & 1) != 0", P, "prompt_rows and holes"),
    ("walk.py", "tl.maximum(row - trailing_window, trailing_first)", "row - trailing_window", P, "prompt_rows and scaled or awkward and 63"),
    ("walk.py", "& (k[None, :] < row[:, None])", "& (k[None, :] <= row[:, None])", P, "prompt_rows and trailing"),
    ("walk.py", "back = tl.where(roll, hidden, shift)", "back = tl.where(roll, hidden + 1, shift)", P, "prompt_rows and rolling"),
    ("walk.py", "shrink = exponent(before, m)", "shrink = exponent(m, m)", P, "prompt_rows and scattered"),
    ("walk.py", "acc = acc * shrink[:, None]", "acc = acc", P, "prompt_rows and gain"),
    ("walk.py", "tl.minimum(hi, tile_first + 1)", "tl.minimum(hi, tile_last + 1)", P, "prompt_rows and gain"),
    ("walk.py", "tl.maximum(lowest, tile_last - behind + 1)", "tl.maximum(lowest, tile_first - behind + 1)", P, "prompt_rows and edges"),
    ("walk.py", "unit_first - behind + 1)", "unit_first - behind + 40)", P, "prompt_rows and window"),
    ("walk.py", "stop = tl.minimum(stop, source_tile)", "stop = stop", P, "prompt_rows and act"),
    ("walk.py", "w = exponent(s, m[:, None]) * weight[:, None]", "w = exponent(s, m[:, None])", P, "prompt_rows and scaled"),
    ("walk.py", "tl.where((heads == head + g)[:, None], fixed, 0)", "tl.where((heads == head + g)[:, None], fixed * (g + 1), 0)", O, "match_the_reference"),
    ("walk.py", "tl.load(places + g)", "tl.load(places)", O, "match_the_reference"),
    ("walk.py", "w * COLUMN_UNIT + 0.5", "w * 512.0", O, "match_the_reference"),
    ("primitives.py", "line + GROUP_FIELDS + 3 * (group - 1)", "line + GROUP_FIELDS + 3 * group", P, "prompt_rows and bias"),
    ("primitives.py", "return factor * scale, absolute * tl.abs(scale)", "return factor * scale, absolute * scale * 0", P, "prompt_rows and scale"),
    ("primitives.py", "bias * LOG2_E", "bias", P, "prompt_rows and bias"),
    ("primitives.py", "tl.abs(p), absolute", "p, absolute", P, "prompt_rows and scale"),
    ("primitives.py", "-back[:, None]", "back[:, None]", P, "prompt_rows and shifted"),
    ("primitives.py", "row.to(tl.int64) * HEADS + heads", "row.to(tl.int64) * HEADS + heads * 0", P, "prompt_rows and gain"),
    ("primitives.py", "mask=seen & (d < HEAD_DIM)", "mask=d < HEAD_DIM", S, "never_read"),
    ("primitives.py", "(k % BLOCK_SIZE)", "((k + 1) % BLOCK_SIZE)", P, "prompt_rows and gain"),
    ("primitives.py", "window - tl.load(record + at.SINKS) + 1", "window + 1", P, "rolling"),
    ("primitives.py", "((quarter + 1) & 2) != 0", "(quarter & 2) != 0", P, "long_distances"),
    ("primitives.py", "tl.maximum(tl.minimum(block, last), 0)", "tl.minimum(block, last)", B, "block_ids"),
    ("primitives.py", "tl.where(m == -float(\"inf\"), 0.0, m)", "m", P, "nothing"),
    ("primitives.py", "block * block_step", "block.to(tl.int32) * block_step.to(tl.int32)", A, "blocks"),
    ("primitives.py", "(k % BLOCK_SIZE).to(tl.int64)", "(k % BLOCK_SIZE)", A, "tokens"),
    ("unit.py", "kv_head.to(tl.int64) * key_head", "kv_head * key_head", A, "heads"),
    ("unit.py", "tl.load(unit + at.TABLE_ROW).to(tl.int64)", "tl.load(unit + at.TABLE_ROW)", A, "table"),
    ("unit.py", "(tl.load(unit + at.TOKEN) + row - first).to(tl.int64)", "(tl.load(unit + at.TOKEN) + row - first)", A, "rows"),
    ("unit.py", "tl.load(unit + at.TOKEN).to(tl.int64) + place * 0", "tl.load(unit + at.TOKEN) + place * 0", A, "rows"),
    ("split.py", "token = tl.load(unit + at.TOKEN).to(tl.int64)", "token = tl.load(unit + at.TOKEN)", A, "rows"),
    ("split.py", "(key % BLOCK_SIZE).to(tl.int64)", "(key % BLOCK_SIZE)", A, "tokens"),
    ("sources.py", "key[:, None] == k[None, :]", "key[:, None] == k[None, :] + 1", P, "prompt_rows and act"),
    ("sources.py", "at.RANGE_BITS + where", "at.RANGE_BITS + where * 0", P, "prompt_rows and scaled"),
    ("sources.py", "shift[None, :],\n", "-shift[None, :],\n", P, "prompt_rows and scaled"),
    ("sources.py", "tl.where(rolling, part, sink)", "sink", P, "prompt_rows and rolling and transfer"),
    ("sources.py", "head * tl.where(own, FOUND_WORDS, 0)", "head * 0", O, "sources_of_its_transfer"),
    ("sources.py", "s + added[:, None] * LOG2_E", "s", P, "prompt_rows and scaled"),
    ("score.py", "(kinds & DENOMINATOR) != 0", "(kinds & DENOMINATOR) == 0", P, "prompt_rows and gate"),
    ("transfer.py", "l_numerator >= ratio * l_denominator", "l_numerator < ratio * l_denominator", P, "prompt_rows and var"),
    ("transfer.py", "gate = (l_numerator >= ratio * l_denominator) & ", "gate = ", P, "prompt_rows and shut"),
    ("transfer.py", "(l_denominator >= least * (l_rest + l_sources))", "(l_denominator >= least)", P, "prompt_rows and least"),
    ("transfer.py", "tl.where(gate, 1.0 - fraction, 1.0)", "1.0 - fraction", P, "prompt_rows and shut"),
    ("transfer.py", "l_destination >= LEAST_DESTINATION", "l_destination >= 0", P, "prompt_rows and destination"),
    ("transfer.py", "tl.minimum(most, m + DEPTH)", "most", P, "mass_moves"),
    ("tile.py", "acc = acc * shrink[:, None]", "acc = acc", P, "mass_moves"),
    ("tile.py", "tl.max(w, 0) > 0,", "chunk + tl.arange(0, CHUNK) < most_held,", S, "never_read"),
    ("split.py", "(acc + more * destination) * shrink", "acc + more * destination", P, "mass_moves"),
    ("transfer.py", "at.RATIO, heads", "at.LEAST, heads", P, "prompt_rows and gate"),
    ("transfer.py", "at.GAIN, heads", "at.FRACTION, heads", P, "prompt_rows and gain"),
    ("transfer.py", "mask=(mix > 0)", "mask=(mix > 1)", P, "prompt_rows and mix"),
    ("transfer.py", "tl.where(l > 0, l, 1.0)", "l", P, "nothing"),
    ("tile.py", "token * output_token + heads * output_head", "token * output_token + head * output_head", P, "prompt_rows and gain"),
    ("tile.py", "high, 0),\n", "high - 1, 0),\n", P, "prompt_rows and end"),
    ("tile.py", "mask=valid[:, None]", "mask=(valid | (row == high))[:, None]", S, "chunks_change"),
    ("tile.py", "l = l + l_sources", "l = l", P, "prompt_rows and act"),
    ("unit.py", "tl.minimum(low + length, position + 1)", "tl.minimum(low + length, position)", P, "generated_rows and gain"),
    ("split.py", "kept = there[:, None] & (d", "kept = (split >= 0)[:, None] & (d", P, "generated_rows and gain"),
    ("score.py", "tl.where(index % parts == 0, 0.0, s)", "s", P, "prompt_rows and act"),
    ("split.py", "tl.store(partial + of_head[:, None] * HEAD_DIM + d[None, :], acc, mask=kept)\n            if", "if", P, "generated_rows and gain"),
    ("launch.py", "work.waves_of(tokens) if everything", "1 if everything", G, "captured"),
    ("launch.py", "tiles = tokens if everything", "tiles = work.tiles if everything", G, "captured"),
    ("launch.py", "splits = work.capacity if everything else min(work.splits, work.capacity)", "splits = work.splits", G, "captured"),
    ("split.py", "exponent(m_split, m)", "exponent(tl.maximum(m_split, m), m)", P, "generated_rows and gain"),
    ("split.py", "there = split * length <= position", "there = split * length < position - 256", P, "generated_rows and gain"),
    ("split.py", "acc + more * destination", "acc + more * acc", P, "generated_rows and var or generated_rows and scaled"),
    ("split.py", "(slot * layers + layer) * HEADS + head)\n            to", "slot * layers * HEADS + head)\n            to", C, "factors_hold"),
    ("split.py", "(slot * layers + layer) * HEADS + head)\n            to", "layer * HEADS + head)\n            to", C, "factors_hold"),
    ("split.py", "o *= tl.load(factors", "o += 0 * tl.load(factors", C, "factors_hold"),
    ("device_table.py", "self.factors.index_fill_(0, taken, 1)", "pass", C, "next_request"),
    ("split.py", "(kinds & DENOMINATOR) != 0", "(kinds & DENOMINATOR) == 0", P, "generated_rows and gate"),
    ("split.py", "turns[None, :], shift[:, None]", "turns[None, :], -shift[:, None]", P, "generated_rows and scaled"),
    ("split.py", "tl.load(unit + at.FIRST_SPLIT)", "tl.load(unit + at.FIRST_SPLIT) * 0", S, "replay"),
    ("split.py", "split_unit(work, first_split + local)", "split_unit(work, local)", S, "replay"),
    ("walk.py", "tl.maximum(start, gap_end)", "tl.maximum(start, gap_start)", E, "generated_rows"),
    ("walk.py", "tl.minimum(range_end, gap_start)", "range_end", E, "generated_rows"),
    ("unit.py", "layer * KV_HEADS + kv_head)", "layer * KV_HEADS)", E, "generated_rows"),
    ("unit.py", "tl.where(end > 0, kept, sinks)", "kept", P, "generated_rows and rolling"),
    ("device_table.py", "table.evicted_end[slots]", "0", E, "generated_rows"),
    ("searching.py", "self._sums.zero_()", "pass", F, "matches_the_reference and True"),
    ("searching.py", "step * (line + np.arange(len(heads)))", "step * line", F, "matches_the_reference"),
    ("searching.py", "self._mass += on_found(self._found, self._sums) - self._held", "self._mass += on_found(self._found, self._sums)", F, "mass"),
    ("pages.py", ".long(), at % size]", ".long(), at % size // 2 * 2]", V, "match_the_definition and norm"),
    ("pages.py", "+ places % size", "", V, "move_in_place"),
    ("move.py", "source >= 0", "source >= -1", V, "move_in_place"),
    ("move.py", "head // GROUP", "head", V, "move_in_place"),
    ("move.py", "source >= 0", "source >= 1", V, "move_in_place"),
    ("move.py", "tl.program_id(1) * DIMS", "0 * DIMS", V, "move_in_place"),
    ("moving.py", "source[start : start + count]", "source[: count]", V, "move_in_place"),
    ("moving.py", "targets[start : start + count]", "targets[:count]", V, "move_in_place"),
    ("columns.py", "8 * self._sums.shape[1] * lines", "8 * lines", V, "match_the_definition and column"),
    ("columns.py", "[cache], [places]", "[cache], [np.arange(len(places))]", V, "match_the_definition and column"),
    ("observe.py", "m * LN_2 + tl.log(l), mask", "m + tl.log(l), mask", O, "match_the_reference"),
    ("observe.py", "other=float(\"inf\")", "other=0.0", O, "pad_a_tile"),
    ("observe.py", "m * LN_2 + tl.log(l))", "m + tl.log(l))", O, "splits"),
    ("observe.py", "masses + to * PROBES + 1, sum_1", "masses + to * PROBES + 1, sum_0", O, "match_the_reference"),
    ("observe.py", "part + 2 + probe, mask=there", "part + 2, mask=there", O, "splits"),
    ("observe.py", "share = exponent(m_split, m)", "share = exponent(m, m)", O, "splits"),
    ("observe.py", "tl.load(unit + at.SPLIT_KEYS) <= tl.load", "tl.load(unit + at.SPLIT_KEYS) <= 0 * tl.load", O, "splits"),
    ("observe.py", "probe, mass / total)", "probe, mass)", O, "splits"),
    ("observe.py", "split_unit(work, first_split + index)", "split_unit(work, index)", O, "splits"),
    ("unit.py", "packed % SPLITS", "packed % SPLITS * 0", O, "splits"),
    ("unit.py", "tl.minimum(low + length, position + 1)", "position + 1", O, "splits"),
    ("observing.py", "flagged.cumsum(dim=1) > 1", "flagged.cumsum(dim=1) > 0", O, "ties"),
    ("observing.py", "right=True) - 1", "right=True)", O, "sources_of_its_transfer"),
    ("step_work.py", "start = (tile[run] + offset) * tile_rows", "start = first[run] + offset * tile_rows", S, "absolute_multiples"),
    ("step_work.py", "tile = first // tile_rows", "tile = first * 0", S, "absolute_multiples"),
    ("device_table.py", "- self._reserved:", "- {*self.found}:", O, "sources_of_its_transfer"),
    ("device_table.py", "kind << at.CLASS_AT.value", "kind << at.VISIBLE_AT.value", P, "prompt_rows and gate"),
]  # fmt: skip


def outcome(folder: Path, mutant: tuple[str, str, str, str, str]) -> str:
    """ "killed" where a test failed by what it asserts; "SURVIVES" where none failed; "BREAKS" where the
    copy does not even run, so that nothing can be said of the tests."""
    name, old, new, tests, which = mutant
    path = folder / "kernels/heed_kernels/triton" / name
    text = path.read_text()
    if old not in text:
        raise SystemExit(f"{name} no longer contains {old!r}")
    path.write_text(text.replace(old, new))
    try:
        command = [
            sys.executable, "-W", "ignore", "-m", "pytest", "-x", "-q", "--no-header", "-p",
            "no:cacheprovider", "-m", "not slow", f"tests/kernels/triton/{tests}", "-k", which,
        ]  # fmt: skip
        # Where CI is set, pytest says in whole why a test failed.
        environment = os.environ | {
            "PYTHONPATH": f"{folder / 'kernels'}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "CI": "1",
        }
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    finally:
        path.write_text(text)
    if done.returncode == 5:
        raise SystemExit(f"no test is called {which!r}")
    if done.returncode == 0:
        return "SURVIVES"
    return "killed" if done.returncode == 1 and FAILURE.search(done.stdout) else "BREAKS"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help="only so many, evenly spread")
    parser.add_argument("--only", default="", help="mutants whose file or code contains this")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if any(options.only in part for part in m[:3])]
    if options.sample:
        chosen = chosen[:: max(1, len(chosen) // options.sample)][: options.sample]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "kernels", folder / "kernels", ignore=skip)
        shutil.copytree(ROOT / "tests/kernels", folder / "tests/kernels", ignore=skip)
        shutil.copy(ROOT / "pyproject.toml", folder)
        # Were nothing changed, nothing must turn red, or every score would be full.
        same = ("walk.py", "import triton\n", "import triton\n", B, "without_work")
        if outcome(folder, same) != "SURVIVES":
            raise SystemExit("the tests fail without any mutant")
        killed = 0
        for mutant in chosen:
            came = outcome(folder, mutant)
            killed += came == "killed"
            print(f"{came:8} {mutant[0]}: {mutant[1]!r} -> {mutant[2]!r}", flush=True)
    print(f"{killed} of {len(chosen)} mutants killed")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
