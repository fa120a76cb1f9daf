"""No request reads what another one's edits have made."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import pytest
from conformance import (
    CASES,
    ONE_OF_EACH,
    REPEATED_TOLERANCE,
    Edits,
    assert_close,
    assert_same,
    largest_difference,
)
from live_server import Completion, LiveServer, together
from tests.slow_cases import gated

ZEROTUNING: Edits = [{"method": "zerotuning", "gamma": 5}]
LOCORE: Edits = [{"method": "locore", "beta": 1, "window": 8}]
GENERATED: Edits = [{"method": "head_gain", "gain": 3, "rows": "generated"}]
FROM_LAST: Edits = [{"method": "head_gain", "gain": 3, "rows": "last_and_generated"}]
EMPHASIS: Edits = [{"method": "emphasis", "spans": [{"start": 20, "end": 40}]}]
STREAMING: Edits = [{"method": "streaming_llm", "window": 32}]
ACT: Edits = [{"method": "act", "beta": 0.1, "layers": "all"}]
CAUSAL: Edits = [{"method": "act", "beta": 0.1, "layers": "all", "stats": "causal"}]
# What a first turn leaves behind differs most between these.
TURNS = {
    "plain": [],
    "zerotuning": ZEROTUNING,
    "locore": LOCORE,
    "head gain of generated rows": GENERATED,
    "head gain from the last prompt row": FROM_LAST,
    "emphasis": EMPHASIS,
    "streaming": STREAMING,
    "act": ACT,
    "causal act": CAUSAL,
}


def assert_apart(one: Completion, other: Completion) -> None:
    """The two differ by so much that mistaking one for the other would show."""
    worst, _ = largest_difference(one.logprobs, other.logprobs)
    assert one.tokens != other.tokens or worst > 10 * REPEATED_TOLERANCE


def needs_cache_details(server: LiveServer) -> None:
    if server.complete(server.prompt(20), max_tokens=1).cached_tokens is None and not server.flags:
        pytest.skip("the running server does not report cached tokens")


@pytest.mark.parametrize("case", gated(CASES, ONE_OF_EACH))
def test_edited_and_plain_requests_alternate_over_one_prefix(server: LiveServer, case: str) -> None:
    """A, B, A, B: each equals the same request with a cache of its own."""
    # A prefix of this test alone: its first request is the one that fills the cache.
    prompt = server.prompt(290, start=20 + list(CASES).index(case))
    edits = CASES[case](len(prompt))
    alone = {
        kind: server.fresh(prompt, edits if kind else [], max_tokens=24) for kind in (True, False)
    }
    assert_apart(alone[True], alone[False])
    for turn, edited in enumerate([True, False, True, False]):
        asked = edits if edited else []
        found = server.complete(prompt, asked, max_tokens=24)
        assert_same(found, alone[edited], asked, f"{case}, request {turn}")


@pytest.mark.parametrize(
    "cases",
    [ONE_OF_EACH, pytest.param(list(CASES), marks=pytest.mark.slow)],
    ids=["one of each", "all"],
)
def test_different_edits_over_one_prefix_stay_apart(server: LiveServer, cases: list[str]) -> None:
    prompt = server.prompt(290, start=60)
    alone = {case: server.fresh(prompt, CASES[case](290)) for case in cases}
    for _ in range(2):
        for case in cases:
            found = server.complete(prompt, CASES[case](290))
            assert_same(found, alone[case], CASES[case](290), case)


def mixed_bag(server: LiveServer) -> list[tuple[list[int], Edits]]:
    """24 requests, no two with equal edits, every fourth of them plain; half share a prefix."""
    shared = server.prompt(200, start=80)
    bag: list[tuple[list[int], Edits]] = []
    for i in range(24):
        prompt = (
            [*shared, *server.prompt(10 + 3 * i, start=i)] if i % 2 else server.prompt(150 + i, i)
        )
        cases = list(CASES.values())
        edits = [] if i % 4 == 0 else cases[i % len(cases)](len(prompt))
        if edits:
            # One more for each, so that no two are equal; eight is as many as a request may have.
            edits = [*edits[:7], {"method": "attention_scale", "q_scale": 1 + i / 50}]
        bag.append((prompt, edits))
    return bag


@pytest.mark.parametrize("salted", [True, False], ids=["caches of their own", "one cache"])
def test_24_concurrent_requests_each_equal_the_same_request_alone(
    server: LiveServer, salted: bool
) -> None:
    bag = mixed_bag(server)
    alone = [server.fresh(prompt, edits, max_tokens=32) for prompt, edits in bag]
    ask = server.fresh if salted else server.complete
    crowd = together([lambda pair=pair: ask(pair[0], pair[1], max_tokens=32) for pair in bag])
    for i, ((_, edits), one, other) in enumerate(zip(bag, crowd, alone, strict=True)):
        assert_same(one, other, edits, f"request {i}: {edits}")


def turn_pairs() -> list[tuple[str, str]]:
    pairs = [("plain", name) for name in TURNS] + [(name, "plain") for name in TURNS]
    return sorted({*pairs, *((name, name) for name in TURNS), ("locore", "zerotuning")})


# Plain after each edit; the edits that share blocks with plain rows after plain and themselves.
FAST_TURNS = [
    *((name, "plain") for name in TURNS),
    ("plain", "locore"),
    ("plain", "head gain from the last prompt row"),
    ("head gain of generated rows", "head gain of generated rows"),
    ("locore", "zerotuning"),
]


@pytest.mark.parametrize("turns", gated(turn_pairs(), FAST_TURNS), ids=", then ".join)
def test_a_second_turn_never_reads_what_it_would_not_have_made(
    server: LiveServer, turns: tuple[str, str]
) -> None:
    """The first turn's answer fills whole blocks, so that generated rows could be found again."""
    first, second = turns
    salt = secrets.token_hex(8)  # the pair's own conversation
    prompt = server.prompt(100, start=100)
    answer = server.complete(prompt, TURNS[first], max_tokens=190, cache_salt=salt)
    longer = [*prompt, *answer.tokens, *server.prompt(12)]
    found = server.complete(longer, TURNS[second], max_tokens=12, cache_salt=salt)
    expected = server.fresh(longer, TURNS[second], max_tokens=12)
    assert_same(found, expected, TURNS[second], f"{first}, then {second}")


@pytest.mark.parametrize(("first", "second"), [([], LOCORE), (LOCORE, []), (ZEROTUNING, [])])
def test_a_second_turn_of_a_chat_equals_a_fresh_one(
    server: LiveServer, first: Edits, second: Edits
) -> None:
    asked = server.tokenizer.decode(server.prompt(140, start=130), skip_special_tokens=True)
    salt = secrets.token_hex(8)

    def chat(messages: list[dict[str, str]], edits: Edits, salt: str, max_tokens: int) -> Any:
        body = {
            "model": server.model,
            "messages": messages,
            "interventions": edits,
            "max_tokens": max_tokens,
            "temperature": 0,
            "logprobs": True,
            "ignore_eos": True,
            "cache_salt": salt,
        }
        response = server.post("/v1/chat/completions", body)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]

    messages = [{"role": "user", "content": asked}]
    answer = chat(messages, first, salt, 150)["message"]["content"]
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And then?"}]
    found, fresh = (chat(messages, second, s, 12) for s in (salt, secrets.token_hex(8)))
    assert found["message"]["content"] == fresh["message"]["content"]
    one, other = (
        [token["logprob"] for token in choice["logprobs"]["content"]] for choice in (found, fresh)
    )
    assert_close(one, other, REPEATED_TOLERANCE)


def cached(server: LiveServer, prompt: list[int], edits: Edits, salt: str | None = None) -> int:
    fields = {"cache_salt": salt} if salt else {}
    return server.complete(prompt, edits, max_tokens=2, **fields).cached_tokens or 0


@pytest.fixture
def unseen(server: LiveServer) -> Callable[[], list[int]]:
    """Makes prompts of 300 tokens that nobody has sent before."""
    needs_cache_details(server)

    def make() -> list[int]:
        words = server.tokenizer(secrets.token_hex(12)).input_ids
        return [*words, *server.prompt(300)][:300]

    return make


def test_equal_edits_share_the_prefix_cache_and_unequal_ones_never_do(
    server: LiveServer, unseen: Callable[[], list[int]]
) -> None:
    prompt = unseen()
    assert cached(server, prompt, ZEROTUNING) == 0
    assert cached(server, prompt, ZEROTUNING) > 0
    unequal: list[Edits] = [
        [],
        [{"method": "zerotuning", "gamma": 5.001}],
        [{"method": "zerotuning", "gamma": 5, "position": 1}],
        [{"method": "zerotuning", "gamma": 5, "layers": [0, 1]}],
        [{"method": "zerotuning", "gamma": 5, "heads": [0, 1]}],
        [*ZEROTUNING, *EMPHASIS],
        EMPHASIS,
        STREAMING,
        CAUSAL,
    ]
    for edits in unequal:
        assert cached(server, prompt, edits) == 0, edits
        assert cached(server, prompt, edits) > 0, edits


def test_edits_are_equal_when_they_mean_the_same(
    server: LiveServer, unseen: Callable[[], list[int]]
) -> None:
    prompt, layers = unseen(), server.shape.num_hidden_layers
    heads = list(range(server.shape.num_attention_heads))
    cached(server, prompt, [*ZEROTUNING, *EMPHASIS])
    same: list[Edits] = [
        [*EMPHASIS, *ZEROTUNING],
        [{"method": "zerotuning", "gamma": 5.0, "layers": list(range(layers))}, *EMPHASIS],
        [{"method": "zerotuning", "gamma": 5, "heads": heads}, *EMPHASIS],
    ]
    for edits in same:
        assert cached(server, prompt, edits) > 0, edits


def test_plain_requests_keep_their_hits_beside_edited_ones(
    server: LiveServer, unseen: Callable[[], list[int]]
) -> None:
    prompt = unseen()
    cached(server, prompt, [])
    cached(server, prompt, ZEROTUNING)
    assert cached(server, prompt, []) > 0
    assert cached(server, prompt, [{"method": "zerotuning", "gamma": 1}]) > 0


@pytest.mark.parametrize("edits", [LOCORE, GENERATED], ids=["locore", "generated rows"])
def test_methods_that_leave_the_prompt_alone_share_its_blocks_with_plain_requests(
    server: LiveServer, unseen: Callable[[], list[int]], edits: Edits
) -> None:
    prompt = unseen()
    cached(server, prompt, [])
    assert cached(server, prompt, edits) > 0
    prompt = unseen()
    cached(server, prompt, edits)
    assert cached(server, prompt, []) > 0


def test_the_users_own_salt_still_parts_requests(
    server: LiveServer, unseen: Callable[[], list[int]]
) -> None:
    for edits in ([], ZEROTUNING, LOCORE):
        prompt = unseen()
        cached(server, prompt, edits)
        assert cached(server, prompt, edits, salt="mine") == 0, edits
        assert cached(server, prompt, edits, salt="mine") > 0, edits
        assert cached(server, prompt, edits, salt="yours") == 0, edits


def test_salted_edits_never_leak_into_plain_requests(
    server: LiveServer, unseen: Callable[[], list[int]]
) -> None:
    prompt = unseen()
    for salt in (None, "mine"):
        cached(server, prompt, ZEROTUNING, salt)
        assert cached(server, prompt, [], salt) == 0
