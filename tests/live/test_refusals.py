"""What cannot be done is refused before the first token, in OpenAI's envelope, and named."""

from __future__ import annotations

from typing import Any

import pytest
from live_server import LiveServer

Edits = Any
ZEROTUNING = {"method": "zerotuning", "gamma": 2}
SPAN = [{"start": 1, "end": 3}]


def assert_refused(
    response: Any, param: str | None = None, code: int = 400, below: bool = False
) -> str:
    """The envelope; `param` exactly, or with `below` that path or one inside it."""
    assert response.status_code == code, response.text[:500]
    assert response.headers["content-type"].startswith("application/json")
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    kinds = {400: "BadRequestError", 403: "PermissionDeniedError", 404: "NotFoundError"}
    assert (error["type"], error["code"]) == (kinds[code], code)
    if param is not None:
        inside = below and str(error["param"]).startswith(f"{param}.")
        assert error["param"] == param or inside, error
    assert error["message"]
    return str(error["message"])


# body's `interventions`, the path that `param` has to name, words that the message has to hold
REFUSED: list[tuple[str, Edits, str, list[str]]] = [
    ("an object", ZEROTUNING, "interventions", []),
    ("a string", "zerotuning", "interventions", []),
    ("a number", 3, "interventions", []),
    ("a list of strings", ["zerotuning"], "interventions.0", []),
    ("a null in the list", [None], "interventions.0", []),
    ("no method", [{"gamma": 2}], "interventions.0.method", ["zerotuning"]),
    ("unknown method", [{"method": "zerotunning"}], "interventions.0.method", ["zerotuning"]),
    ("method of another type", [{"method": 7}], "interventions.0.method", []),
    ("unknown field", [{**ZEROTUNING, "gama": 3}], "interventions.0.gama", ["gamma"]),
    ("second in the list", [ZEROTUNING, {"method": "x"}], "interventions.1.method", []),
    ("missing gamma", [{"method": "zerotuning"}], "interventions.0.gamma", []),
    ("text for gamma", [{"method": "zerotuning", "gamma": "2"}], "interventions.0.gamma", []),
    ("true for gamma", [{"method": "zerotuning", "gamma": True}], "interventions.0.gamma", []),
    ("null for gamma", [{"method": "zerotuning", "gamma": None}], "interventions.0.gamma", []),
    ("gamma of zero", [{"method": "zerotuning", "gamma": 0}], "interventions.0.gamma", []),
    ("gamma above", [{"method": "zerotuning", "gamma": 10.5}], "interventions.0.gamma", ["10"]),
    ("position above", [{**ZEROTUNING, "position": 8}], "interventions.0.position", ["8"]),
    ("half a position", [{**ZEROTUNING, "position": 1.5}], "interventions.0.position", []),
    ("gain missing", [{"method": "head_gain"}], "interventions.0.gain", []),
    ("gain above", [{"method": "head_gain", "gain": 4.1}], "interventions.0.gain", ["4"]),
    ("scale above", [{"method": "attention_scale", "q_scale": 11}], "interventions.0.q_scale", []),
    ("beta above", [{"method": "locore", "beta": 1.1}], "interventions.0.beta", []),
    ("locore window", [{"method": "locore", "window": 0}], "interventions.0.window", ["256"]),
    ("locore window above", [{"method": "locore", "window": 257}], "interventions.0.window", []),
    ("sinks above", [{"method": "streaming_llm", "sinks": 65}], "interventions.0.sinks", ["64"]),
    ("small window", [{"method": "streaming_llm", "window": 15}], "interventions.0.window", ["16"]),
    ("spans missing", [{"method": "emphasis"}], "interventions.0.spans", []),
    ("no spans", [{"method": "emphasis", "spans": []}], "interventions.0.spans", []),
    (
        "alpha of zero",
        [{"method": "emphasis", "spans": SPAN, "alpha": 0}],
        "interventions.0.alpha",
        [],
    ),
    (
        "positions of another name",
        [{"method": "streaming_llm", "positions": "absolute"}],
        "interventions.0.positions",
        ["rolling", "original"],
    ),
    (
        "rows of another name",
        [{"method": "head_gain", "gain": 2, "rows": "some"}],
        "interventions.0.rows",
        ["generated"],
    ),
    ("too many", [{**ZEROTUNING, "heads": [i % 6]} for i in range(9)], "interventions", ["8"]),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("edits", "param", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_what_is_written_wrongly_is_refused_and_named(
    server: LiveServer, edits: Edits, param: str, words: list[str], stream: bool
) -> None:
    for response in (
        server.chat("Hello there", interventions=edits, stream=stream),
        server.raw_completion("Hello there", interventions=edits, stream=stream),
    ):
        message = assert_refused(response, param)
        assert all(word in message for word in words), message


# These need the model or the prompt to be found out; `param` names the field or something in it.
UNFIT: list[tuple[str, Edits, str]] = [
    ("a layer too many", [{**ZEROTUNING, "layers": [0, 99]}], "interventions.0.layers"),
    ("a layer before the first", [{**ZEROTUNING, "layers": [-99]}], "interventions.0.layers"),
    ("a head too many", [{**ZEROTUNING, "heads": [99]}], "interventions.0.heads"),
    ("a head below zero", [{**ZEROTUNING, "heads": [-1]}], "interventions.0.heads"),
    ("a layer of heads too many", [{**ZEROTUNING, "heads": {"99": [0]}}], "interventions.0.heads"),
    ("a head in an object", [{**ZEROTUNING, "heads": {"0": [99]}}], "interventions.0.heads"),
    ("a layer that is a word", [{**ZEROTUNING, "heads": {"x": [0]}}], "interventions.0.heads"),
    ("layers of a word", [{**ZEROTUNING, "layers": "most"}], "interventions.0.layers"),
    ("layers as text", [{**ZEROTUNING, "layers": ["0"]}], "interventions.0.layers"),
    (
        "heads by layer beside layers",
        [{**ZEROTUNING, "layers": [0], "heads": {"0": [1]}}],
        "interventions.0",
    ),
    (
        "a span that is not there",
        [{"method": "emphasis", "spans": [{"text": "no such words"}]}],
        "interventions.0.spans",
    ),
    (
        "an occurrence that is not there",
        [{"method": "emphasis", "spans": [{"text": "Hello", "occurrence": 2}]}],
        "interventions.0.spans",
    ),
    (
        "an occurrence of zero",
        [{"method": "emphasis", "spans": [{"text": "Hello", "occurrence": 0}]}],
        "interventions.0.spans",
    ),
    (
        "an empty text",
        [{"method": "emphasis", "spans": [{"text": ""}]}],
        "interventions.0.spans",
    ),
    (
        "a span beyond the prompt",
        [{"method": "emphasis", "spans": [{"start": 0, "end": 4000}]}],
        "interventions.0.spans",
    ),
    (
        "a span without tokens",
        [{"method": "emphasis", "spans": [{"start": 2, "end": 2}]}],
        "interventions.0.spans",
    ),
    (
        "a span that is text and positions",
        [{"method": "emphasis", "spans": [{"text": "Hello", "start": 0, "end": 1}]}],
        "interventions.0.spans",
    ),
    (
        "a window beyond the context",
        [{"method": "streaming_llm", "window": 10_000_000}],
        "interventions.0.window",
    ),
    ("streaming twice", [{"method": "streaming_llm"}] * 2, "interventions"),
    ("locore twice", [{"method": "locore"}, {"method": "locore", "beta": 0.3}], "interventions"),
    ("rows after an image", [{"method": "head_gain", "gain": 2, "rows": "after_image"}],
     "interventions.0"),
    ("a vision method", [{"method": "var"}], "interventions.0"),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("edits", "param"), [row[1:] for row in UNFIT], ids=[row[0] for row in UNFIT]
)
def test_what_does_not_fit_the_model_or_the_prompt_is_refused_and_named(
    server: LiveServer, edits: Edits, param: str, stream: bool
) -> None:
    for response in (
        server.chat("Hello there", interventions=edits, stream=stream),
        server.raw_completion("Hello there", interventions=edits, stream=stream),
    ):
        assert_refused(response, param, below=True)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_profile_that_is_missing_is_a_404(server: LiveServer, stream: bool) -> None:
    edits = [{"method": "zerotuning", "profile": "none"}]
    for response in (
        server.chat("Hello there", interventions=edits, stream=stream),
        server.raw_completion("Hello there", interventions=edits, stream=stream),
    ):
        assert "none" in assert_refused(response, "interventions.0.profile", code=404)


def test_the_second_prompt_of_a_list_may_be_the_one_that_does_not_fit(server: LiveServer) -> None:
    edits = [{"method": "emphasis", "spans": [{"text": "needle"}]}]
    response = server.raw_completion(["a needle here", "nothing"], interventions=edits)
    assert_refused(response, "interventions.0.spans", below=True)


@pytest.mark.parametrize(
    ("edit", "param"),
    [
        ({"method": "head_gain", "gain": 0.5}, "gain"),
        ({"method": "head_gain", "gain": -1, "heads": {"0": [0]}}, "gain"),
        ({"method": "attention_scale", "q_scale": 0}, "q_scale"),
    ],
    ids=str,
)
def test_privileged_edits_are_forbidden_by_default(
    server: LiveServer, edit: dict[str, Any], param: str
) -> None:
    for response in (
        server.chat("Hello", interventions=[edit]),
        server.raw_completion("Hello", interventions=[edit], stream=True),
    ):
        if response.status_code == 200 and not server.flags:
            pytest.skip("the running server allows privileged interventions")
        message = assert_refused(response, "interventions.0", 403, below=True)
        assert "--allow-privileged-interventions" in message


DEEP = "[" * 20_000 + "]" * 20_000
HOSTILE: dict[str, str] = {
    "NaN": '[{"method": "zerotuning", "gamma": NaN}]',
    "infinity": '[{"method": "zerotuning", "gamma": Infinity}]',
    "minus infinity": '[{"method": "head_gain", "gain": -Infinity}]',
    "a float too large": '[{"method": "zerotuning", "gamma": 1e999}]',
    "a huge integer": '[{"method": "zerotuning", "gamma": 1' + "0" * 400 + "}]",
    "an integer of 5,000 digits": '[{"method": "zerotuning", "gamma": 1' + "0" * 5000 + "}]",
    "a huge layer": '[{"method": "zerotuning", "gamma": 2, "layers": [1' + "0" * 30 + "]}]",
    "a huge position": '[{"method": "emphasis", "spans": [{"start": 0, "end": 9'
    + "9" * 30
    + "}]}]",
    "a huge window": '[{"method": "streaming_llm", "window": 9' + "9" * 30 + "}]",
    "deep nesting": DEEP,
    "deep nesting in a field": '[{"method": "zerotuning", "gamma": ' + DEEP + "}]",
    "a megabyte as method": '[{"method": "' + "z" * 1_000_000 + '"}]',
    "a megabyte as span": '[{"method": "emphasis", "spans": [{"text": "'
    + "z" * 1_000_000
    + '"}]}]',
    "a megabyte as field": '[{"method": "zerotuning", "gamma": 2, "' + "z" * 1_000_000 + '": 1}]',
    "lone surrogates": '[{"method": "emphasis", "spans": [{"text": "\\ud800"}]}]',
    "a nul": '[{"method": "emphasis", "spans": [{"text": "\\u0000"}]}]',
    "a hundred thousand": "[" + ",".join(['{"method": "locore"}'] * 100_000) + "]",
    "a hundred thousand heads": '[{"method": "zerotuning", "gamma": 2, "heads": ['
    + ",".join(["99"] * 100_000)
    + "]}]",
}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_json_is_refused_in_the_envelope(server: LiveServer, kind: str, path: str) -> None:
    text = f'{{"model": "{server.model}", "max_tokens": 1, "prompt": "Hello", '
    text += '"messages": [{"role": "user", "content": "Hello"}], '
    text += f'"interventions": {HOSTILE[kind]}}}'
    response = server.client.post(
        path, content=text.encode(), headers={"content-type": "application/json"}
    )
    message = assert_refused(response)
    assert len(message) < 10_000, "an error repeats at most a piece of what was sent"
    assert server.client.get("/health").status_code == 200


def test_a_body_that_is_no_json_is_refused(server: LiveServer) -> None:
    response = server.client.post(
        "/v1/completions",
        content=b'{"interventions": [{"method": "zerotuning", ',
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 400
    assert response.json()["error"]["message"]


@pytest.mark.parametrize("interventions", [[ZEROTUNING], []], ids=["edited", "plain"])
def test_the_reserved_key_is_refused_from_outside(
    server: LiveServer, interventions: list[dict[str, Any]]
) -> None:
    for response in (
        server.chat("Hello", vllm_xargs={"heed": "{}"}, interventions=interventions),
        server.raw_completion("Hello", vllm_xargs={"heed": 1}, interventions=interventions),
    ):
        assert "heed" in assert_refused(response, "vllm_xargs", below=True)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/interventions/validate"])
def test_the_reserved_key_is_refused_in_extra_args_too(server: LiveServer, path: str) -> None:
    body = {"model": server.model, "prompt": "Hello", "extra_args": {"heed": 1}}
    assert_refused(server.post(path, body), "extra_args.heed")


def test_other_keys_of_vllm_xargs_pass(server: LiveServer) -> None:
    response = server.chat("Hello", vllm_xargs={"mine": "1"}, interventions=[ZEROTUNING])
    assert response.status_code == 200, response.text


def test_a_salt_that_looks_like_heeds_own_is_refused(server: LiveServer) -> None:
    response = server.raw_completion("Hello", cache_salt="heed1:0000")
    assert_refused(response, "cache_salt")


def test_beam_search_cannot_carry_interventions(server: LiveServer) -> None:
    for response in (
        server.chat("Hello", use_beam_search=True, n=2, interventions=[ZEROTUNING]),
        server.raw_completion("Hello", use_beam_search=True, n=2, interventions=[ZEROTUNING]),
    ):
        assert "beam" in assert_refused(response, "use_beam_search")
    plain = server.raw_completion("Hello", use_beam_search=True, n=2)
    assert plain.status_code == 200, plain.text


CARRIES = {
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"),
    *("/v1/interventions/validate", "/v1/attention"),
}


def other_doors(server: LiveServer) -> list[str]:
    paths = server.client.get("/openapi.json").json()["paths"]
    return sorted(path for path, doors in paths.items() if "post" in doors and path not in CARRIES)


def test_every_other_post_route_refuses_interventions(server: LiveServer) -> None:
    """Also with a body that the route would otherwise serve: nothing is accepted and ignored."""
    doors = other_doors(server)
    assert {"/invocations", "/v1/messages/count_tokens", "/tokenize"} <= set(doors)
    messages = [{"role": "user", "content": "Hello"}]
    usable = {"prompt": "Hello", "messages": messages, "input": "Hello", "max_tokens": 1}
    for door in doors:
        path = door.replace("{", "").replace("}", "")
        for fields in ({}, usable, {"messages": messages, "max_tokens": 1}):
            body = {"model": server.model, **fields, "interventions": [ZEROTUNING]}
            response = server.post(path, body)
            assert response.status_code == 400, f"{door}: {response.status_code} {response.text}"
            assert "interventions" in assert_refused(response, "interventions", below=True), door


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": 'a form has name="interventions" in it'}),
        ("/v1/responses", {"input": "name=interventions ", "max_output_tokens": 1, "store": False}),
    ],
)
def test_bodies_without_interventions_pass_through_every_other_route(
    server: LiveServer, path: str, body: dict[str, Any]
) -> None:
    response = server.post(path, {"model": server.model, **body})
    assert response.status_code == 200, response.text
