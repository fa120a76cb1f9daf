"""Cases of every method, and the comparison of a server's completion with the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from eviction_cases import EVICTION_CASES, WINDOW
from live_server import Completion, LiveServer
from reference_results import Result
from transformers_reference import generate

Edits = list[dict[str, Any]]
Case = Callable[[int], Edits]

TOLERANCE = 1e-4
# The same edited request may split its work by what is in the cache. Plain ones repeat bit for bit.
REPEATED_TOLERANCE = 2e-5
# Two tokens whose log-probabilities lie within both sides' tolerance may swap places.
NEAR_TIE = 2e-4
# A mean weight so near the threshold, or the least sink's, may lie on its other side.
NEAR_THRESHOLD = 1e-5

# The server's threads wait by spinning, so more than one thread here only adds waiting. With one,
# a pass over 300 tokens takes a tenth of a second beside a server on two cores.
torch.set_num_threads(1)


def evicts_later(edit: dict[str, Any]) -> bool:
    """Whether it evicts in decode too, so that a report tells of its last eviction."""
    return edit["method"] in ("h2o", "tova") and bool(edit.get("decode", True))


def inner(length: int) -> dict[str, int]:
    """A span in the middle of a prompt of any length."""
    return {"start": length // 3, "end": max(length // 3 + 1, length // 2)}


def tail(length: int) -> dict[str, int]:
    return {"start": max(0, length - 5), "end": length}


# The full report says what was found, so that the reference can compare it and take it over.
ACT = {"method": "act", "report": "full"}
CAUSAL = {**ACT, "stats": "causal"}

# What the server accepts as it is started by default. Edits are stronger than anyone would want,
# so that an edit which is not carried out shows. Layers and heads of the bundled model: at least
# four layers, six query heads on two KV heads.
CASES: dict[str, Case] = {
    "zerotuning": lambda n: [{"method": "zerotuning", "gamma": 6}],
    "zerotuning of some heads": lambda n: [
        {"method": "zerotuning", "gamma": 0.1, "layers": [1, -1], "heads": [0, 4, 5]}
    ],
    "zerotuning of another position": lambda n: [
        {"method": "zerotuning", "gamma": 9, "position": 7, "heads": {"0": [1], "-2": [2, 3]}}
    ],
    "head gain": lambda n: [
        {"method": "head_gain", "gain": 2.5, "layers": [1, 2], "heads": [0, 3]}
    ],
    "head gain of prompt rows": lambda n: [{"method": "head_gain", "gain": 3, "rows": "prompt"}],
    "head gain of generated rows": lambda n: [
        {"method": "head_gain", "gain": 3, "rows": "generated"}
    ],
    "head gain from the last prompt row": lambda n: [
        {"method": "head_gain", "gain": 3, "rows": "last_and_generated", "heads": {"2": [5]}}
    ],
    "attention scale": lambda n: [{"method": "attention_scale", "q_scale": 3, "heads": [1, 2]}],
    "emphasis": lambda n: [{"method": "emphasis", "spans": [inner(n)]}],
    "emphasis of two spans in generated rows": lambda n: [
        {
            "method": "emphasis",
            "alpha": 0.2,
            "spans": [inner(n), tail(n)],
            "protect_positions": [],
            "layers": [0, 2],
            "heads": [0, 1, 5],
            "rows": "generated",
        }
    ],
    "locore": lambda n: [{"method": "locore", "beta": 1, "window": 3}],
    "locore of late layers": lambda n: [{"method": "locore", "beta": 0.9, "layers": [-1, -2]}],
    "streaming": lambda n: [{"method": "streaming_llm", "window": 40}],
    "streaming without sinks": lambda n: [{"method": "streaming_llm", "sinks": 0, "window": 16}],
    "streaming at original positions": lambda n: [
        {"method": "streaming_llm", "sinks": 3, "window": 61, "positions": "original"}
    ],
    "act": lambda n: [{**ACT, "beta": 0.1}],
    "act of some heads": lambda n: [
        {**ACT, "tau": 0.05, "beta": 0, "heads": {"0": [1, 4], "3": [0, 2, 5]}, "max_sinks": 3}
    ],
    "act that goes on": lambda n: [
        {**ACT, "decode": "running", "protect": "position_0", "beta": 0, "layers": "all"}
    ],
    "act of prompt rows": lambda n: [
        {**ACT, "decode": "off", "alpha_over_n": 2, "min_rows": 3, "layers": [1, -1]}
    ],
    "causal act": lambda n: [{**CAUSAL, "beta": 0.1, "layers": "all"}],
    "causal act that goes on": lambda n: [
        {**CAUSAL, "decode": "running", "tau": 0.08, "beta": 0, "layers": "all"}
    ],
    "causal act of prompt rows": lambda n: [
        {**CAUSAL, "decode": "off", "beta": 0, "layers": "all"}
    ],
    "act with edited logits": lambda n: [
        {"method": "zerotuning", "gamma": 0.3},
        {"method": "emphasis", "alpha": 0.4, "spans": [inner(n)]},
        {"method": "locore", "beta": 0.7, "window": 5},
        {**ACT, "beta": 0.1, "layers": "all"},
        {"method": "head_gain", "gain": 1.5, "layers": [2]},
    ],
    "everything together": lambda n: [
        {"method": "head_gain", "gain": 1.7, "rows": "last_and_generated"},
        {"method": "locore", "beta": 0.7, "window": 5},
        {"method": "emphasis", "alpha": 0.3, "spans": [inner(n)], "layers": [0, 1, 3]},
        {"method": "emphasis", "alpha": 0.5, "spans": [tail(n)], "heads": [0, 2, 4]},
        {"method": "streaming_llm", "sinks": 2, "window": 33},
        {"method": "attention_scale", "q_scale": 1.5, "heads": {"1": [0, 1, 2]}},
        {"method": "zerotuning", "gamma": 3},
        {"method": "zerotuning", "gamma": 2, "layers": [2]},
    ],
    # Scores are those of the re-weighted rows; and those of rows before sinks give weight away.
    "snapkv of emphasised prompt rows": lambda n: [
        {"method": "emphasis", "alpha": 0.05, "spans": [inner(n)], "rows": "prompt"},
        {"method": "snapkv", "report": "full", "keep": 0.3, **WINDOW},
    ],
    "snapkv of calibrated prompt rows": lambda n: [
        {**ACT, "decode": "off", "alpha_over_n": 2, "beta": 0.1, "layers": "all"},
        {"method": "snapkv", "report": "full", "keep": 0.3, **WINDOW},
    ],
    **EVICTION_CASES,
}

# Only where the operator allows them.
PRIVILEGED_CASES: dict[str, Case] = {
    "an inverted head": lambda n: [{"method": "head_gain", "gain": -2, "heads": {"1": [0, 4]}}],
    "removed heads": lambda n: [
        {"method": "head_gain", "gain": 0, "layers": [1], "rows": "prompt"}
    ],
    "uniform heads": lambda n: [{"method": "attention_scale", "q_scale": 0, "heads": {"0": [3]}}],
    "flat heads": lambda n: [{"method": "attention_scale", "q_scale": 0.3, "layers": [0, 1]}],
}

# Sinks are found more than once, and reports tell the last ones: where bfloat16 decides otherwise than
# the reference, what came before cannot be taken over.
DECIDED_OFTEN = {
    "act that goes on",
    "causal act",
    "causal act that goes on",
    "causal act of prompt rows",
}

# As much is true of the keys that are kept.
EVICTED_OFTEN = {name for name, each in EVICTION_CASES.items() if evicts_later(each(100)[0])}

LENGTHS = [1, 17, 63, 129, 300]
ALL_CASES = CASES | PRIVILEGED_CASES

# One case of each way to edit, where a test is about the server and not about the method.
ONE_OF_EACH = [
    "zerotuning of some heads",
    "head gain of prompt rows",
    "head gain of generated rows",
    "attention scale",
    "emphasis of two spans in generated rows",
    "locore",
    "streaming",
    "streaming at original positions",
    "act",
    "causal act that goes on",
    "snapkv",
    "h2o",
]
# What cuts into chunks, small blocks and preemptions could break: classes of rows, sinks counted over
# chunks, evictions after the prompt and within the answer, and most primitives on the same rows.
CUT = [
    "zerotuning of some heads",
    "emphasis of two spans in generated rows",
    "causal act that goes on",
    "h2o",
    "snapkv beside others",
    "everything together",
]


def reference_of(
    server: LiveServer,
    prompt: Sequence[int],
    edits: Edits,
    completion: Completion,
    *,
    kept_anywhere: bool = False,
) -> Result:
    """The reference, along the tokens that the server chose, the keys that it reported to keep, and the
    sinks that it found.

    kept_anywhere: those keys need not be the definition's, as where scores are not as exact.
    """
    reports = completion.report or [{}] * len(edits)
    return generate(
        server.model_dir,
        prompt,
        [
            edit | told(edit, report, kept_anywhere)
            for edit, report in zip(edits, reports, strict=True)
        ],
        forced_tokens=completion.tokens,
        block_size=server.block_size,
    )


def told(edit: dict[str, Any], report: Mapping[str, Any], kept_anywhere: bool) -> dict[str, Any]:
    """What a full report says that the reference has to follow where both sides are as right."""
    if edit["method"] == "act":
        return {"sinks": sinks_of(report)}
    if "kept" in report and not evicts_later(edit):
        return {"kept": report["kept"], "kept_anywhere": kept_anywhere}
    return {}


def sinks_of(report: Mapping[str, Any]) -> dict[int, dict[int, list[int]]] | None:
    """What ACT's full report says that it found, by layer and head; None where nothing ran."""
    if "sink_keys" not in report:
        return None
    return {
        int(layer): {int(head): keys for head, keys in heads.items()}
        for layer, heads in report["sink_keys"].items()
    }


def is_private(edits: Edits) -> bool:
    """Whether the set neither reads nor writes the prefix cache."""
    return any(edit["method"] == "act" and edit.get("stats") != "causal" for edit in edits)


def longest_prompt(server: LiveServer, case: Case) -> int:
    """How long a prompt this server takes with the case: a step's tokens where it looks ahead."""
    looks_ahead = any(e["method"] == "act" and "stats" not in e for e in case(100))
    if not looks_ahead:
        return 10**9
    return int(server.flags[server.flags.index("--max-num-batched-tokens") + 1])


@dataclass(frozen=True)
class NearTies:
    """What one side takes and the other one just not: tokens and sinks of ACT, and keys to be kept."""

    choices: int
    keys: int


def assert_conforms(
    server: LiveServer,
    prompt: Sequence[int],
    edits: Edits,
    completion: Completion,
    tolerance: float = TOLERANCE,
) -> NearTies:
    """Equal greedy tokens and log-probabilities; the near-ties that went the other way.

    The reference follows the server's tokens, so what comes after a near-tie is compared as well.
    """
    reference = reference_of(server, prompt, edits, completion)
    for found in reference.disagreements:
        assert found.margin < NEAR_THRESHOLD, f"{edits}, prompt of {len(prompt)}: {found}"
    swaps = [
        i
        for i, pair in enumerate(zip(completion.tokens, reference.best_tokens, strict=True))
        if pair[0] != pair[1]
    ]
    for i in swaps:
        gap = reference.best_logprobs[i] - reference.token_logprobs[i]
        assert gap < NEAR_TIE, (
            f"{edits}, prompt of {len(prompt)}: token {i} is {completion.tokens[i]}, the reference "
            f"takes {reference.best_tokens[i]}, more likely by {gap:.2g}"
        )
    found = [*completion.prompt_logprobs, *completion.logprobs]
    expected = [
        *reference.prompt_logprobs[: len(completion.prompt_logprobs)],
        *reference.token_logprobs,
    ]
    assert_close(found, expected, tolerance, f"{edits}, prompt of {len(prompt)}")
    near_keys = sum(eviction.differing for eviction in reference.evictions)
    return NearTies(len(swaps) + len(reference.disagreements), near_keys)


def assert_same(found: Completion, expected: Completion, edits: Edits, what: str = "") -> None:
    """The same request again: equal tokens, and log-probabilities as near as it can be told."""
    if edits:
        assert_close(found.logprobs, expected.logprobs, REPEATED_TOLERANCE, what)
    else:
        assert found.logprobs == expected.logprobs, what
    assert found.tokens == expected.tokens, what


def assert_close(
    found: Sequence[float | None],
    expected: Sequence[float | None],
    tolerance: float,
    what: str = "",
) -> None:
    """Log-probabilities agree; a failure says where the worst of them is."""
    worst, place = largest_difference(found, expected)
    assert worst <= tolerance, f"{what}: log-probability {place} is off by {worst:.3g}"


def largest_difference(
    found: Sequence[float | None], expected: Sequence[float | None]
) -> tuple[float, int]:
    """The largest difference and its place."""
    assert len(found) == len(expected)
    differences = [
        0.0 if one is None or other is None else abs(one - other)
        for one, other in zip(found, expected, strict=True)
    ]
    worst = max(differences)
    return worst, differences.index(worst)
