"""Generated bodies, most of them wrong, at a live server: it refuses, and stays what it was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from eviction_cases import EVICTION
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_server import LiveServer

from heed_interventions import METHODS

FIELDS = sorted({field for method in METHODS.values() for field in method.model_fields})

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 12),
    st.integers(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from(["all", "prompt", "generated", "rolling", "original", "", "0", "-1"]),
    st.text(max_size=20),
)
# Values that are right for some field stand beside the wrong ones, so that bodies get far.
likely = st.one_of(
    st.floats(0.01, 4),
    st.integers(0, 300),
    st.just("all"),
    st.lists(st.integers(-7, 7), max_size=4),
    st.dictionaries(st.integers(-1, 6).map(str), st.lists(st.integers(-1, 6), max_size=3)),
    st.lists(
        st.fixed_dictionaries(
            {}, optional={"start": st.integers(-2, 9), "end": st.integers(-2, 9)}
            | {"text": st.sampled_from(["Hello", " ", "", "lo th"]), "occurrence": scalars}
        ),
        max_size=3,
    ),
)  # fmt: skip
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
interventions = st.dictionaries(
    st.sampled_from(FIELDS) | st.text(max_size=6), likely | anything, max_size=4
).flatmap(
    lambda fields: st.one_of(
        *2 * [st.sampled_from(list(METHODS))], st.text(max_size=9), anything
    ).map(lambda method: {"method": method, **fields})
)
# Right as they stand, or with one field spoilt: half of these are accepted, so that the bodies
# reach the engine as well.
Fields = dict[str, st.SearchStrategy[Any]]
selectors: Fields = {
    "layers": st.lists(st.integers(-4, 3), min_size=1, max_size=3, unique=True) | st.just("all"),
    "heads": st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True) | st.just("all"),
}
# What each method needs, and what it may have.
fields_of: dict[str, tuple[Fields, Fields]] = {
    "zerotuning": ({"gamma": st.floats(0.01, 10)}, {"position": st.integers(0, 7), **selectors}),
    "head_gain": (
        {"gain": st.floats(1, 4)},
        {"rows": st.sampled_from(["all", "prompt", "generated"]), **selectors},
    ),
    "attention_scale": ({"q_scale": st.floats(1, 10)}, selectors),
    "emphasis": (
        {"spans": st.just([{"text": "there"}])},
        {"alpha": st.floats(0.001, 1), **selectors},
    ),
    "locore": ({}, {"beta": st.floats(0, 1), "window": st.integers(1, 256)}),
    "streaming_llm": (
        {"window": st.integers(16, 500)},
        {"sinks": st.integers(0, 64), "positions": st.sampled_from(["rolling", "original"])},
    ),
    "act": (
        {},
        {
            "beta": st.floats(0, 1),
            "tau": st.none() | st.floats(0.01, 1),
            "stats": st.sampled_from(["full", "causal"]),
            "decode": st.sampled_from(["frozen", "running", "off"]),
            "protect": st.sampled_from(["first_flagged", "position_0"]),
            "max_sinks": st.integers(1, 16),
            **selectors,
        },
    ),
}
budgets: list[Fields] = [{"budget": st.integers(1, 80)}, {"keep": st.floats(0.01, 1)}]
optional: Fields = {"sinks": st.integers(0, 4), "recent": st.integers(0, 8)}
right = st.one_of(
    *(
        st.fixed_dictionaries({"method": st.just(method), **needed}, optional=more)
        for method, (needed, more) in fields_of.items()
    ),
    *(
        st.fixed_dictionaries({"method": st.sampled_from(EVICTION), **budget}, optional=optional)
        for budget in budgets
    ),
)
spoilt = st.builds(
    lambda one, name, value: one | {name: value}, right, st.sampled_from(FIELDS), likely
)
values = st.one_of(
    st.lists(right, min_size=1, max_size=3),
    st.lists(right | spoilt, min_size=1, max_size=3),
    st.lists(interventions, max_size=3),
    st.lists(anything, max_size=10),
    anything,
)
settings_beside = st.fixed_dictionaries(
    {},
    optional={
        "stream": st.booleans(),
        "n": st.integers(1, 2),
        "logprobs": st.sampled_from([0, 1]),
        "cache_salt": st.sampled_from(["a", "b"]),
        "vllm_xargs": st.just({"x": "1"}),
        "echo": st.booleans(),
    },
)
settings_wrong = st.fixed_dictionaries(
    {},
    optional={
        "cache_salt": st.sampled_from(["", "heed1:a"]) | anything,
        "vllm_xargs": st.dictionaries(st.sampled_from(["heed", "x"]), scalars, max_size=2),
        "use_beam_search": st.booleans(),
        "n": scalars,
    },
)
# Three times in four what stands beside the interventions is in order.
beside = st.one_of(settings_beside, settings_beside, settings_beside, settings_wrong)
requests = st.builds(lambda value, others: {"interventions": value, **others}, values, beside)


def test_every_method_for_texts_has_bodies_that_are_right() -> None:
    texts = {name for name, method in METHODS.items() if not method.needs_image}
    assert texts == {*fields_of, *EVICTION}


@pytest.fixture(scope="module")
def good(server: LiveServer) -> list[Any]:
    """Plain and edited answers from before all generated bodies."""
    return answers(server)


def answers(server: LiveServer) -> list[Any]:
    prompt, edits = server.prompt(150), [{"method": "zerotuning", "gamma": 4}]
    found = [server.fresh(prompt, chosen, prompt_logprobs=True) for chosen in ([], edits)]
    return [(one.tokens, one.logprobs, one.prompt_logprobs) for one in found]


def send(server: LiveServer, path: str, fields: dict[str, Any]) -> None:
    body = {"model": server.model, "max_tokens": 2, "temperature": 0, **fields}
    body["prompt"] = "Hello there"
    if path == "/v1/chat/completions":
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
        body.pop("logprobs", None)  # a flag here, a count there
    response = server.client.post(
        path, content=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    assert response.status_code < 500, f"{response.status_code} {response.text[:2000]}"
    if response.status_code >= 400:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == response.status_code
    elif fields.get("stream"):
        assert response.text.rstrip().endswith("data: [DONE]")
        assert '"error"' not in response.text
    elif fields["interventions"]:
        # Whatever was accepted is accounted for: nothing is dropped in silence.
        assert len(response.json()["interventions"]) == len(fields["interventions"])


QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.mark.usefixtures("good")
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@settings(max_examples=200, suppress_health_check=QUIET)
@given(fields=requests)
def test_no_body_makes_the_server_fail(
    server: LiveServer, path: str, fields: dict[str, Any]
) -> None:
    send(server, path, fields)


def test_a_good_request_has_the_same_bits_after_all_of_them(
    server: LiveServer, good: list[Any]
) -> None:
    assert answers(server) == good
    assert server.client.get("/health").status_code == 200


@pytest.mark.slow
@settings(max_examples=2000, suppress_health_check=QUIET)
@given(fields=requests)
def test_no_body_makes_a_cramped_server_fail(
    cramped_server: LiveServer, fields: dict[str, Any]
) -> None:
    send(cramped_server, "/v1/completions", fields)
