"""The playground's modules that draw nothing, called in the browser."""

from __future__ import annotations

import ast
import json
import subprocess
from typing import Any

import pytest

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.fixture(scope="module")
def blank(browser: Any, shared_stand_in: Any) -> Any:
    """A page that has the modules at hand."""
    page = browser.new_page()
    page.goto(shared_stand_in.url)
    yield page
    page.close()


@pytest.fixture(scope="module")
def module(blank: Any) -> Any:
    """Calls a function of a module: `module("differences.js", "align", [...], [...])`."""

    def call(file: str, name: str, *arguments: Any) -> Any:
        code = (
            "async ([file, name, given]) => (await import(`/playground/${file}`))[name](...given)"
        )
        return blank.evaluate(code, [file, name, list(arguments)])

    return call


@pytest.mark.parametrize(
    ("before", "after", "pairs"),
    [
        ("", "", ([], [])),
        ("abc", "abc", ([0, 1, 2], [0, 1, 2])),
        ("abc", "", ([-1, -1, -1], [])),
        ("abc", "xbc", ([-1, 1, 2], [-1, 1, 2])),
        ("abcde", "axcyye", ([0, -1, 2, -1, 5], [0, -1, 2, -1, -1, 4])),
        ("ab", "ba", ([-1, 0], [1, -1])),
    ],
)
def test_tokens_are_paired_along_a_longest_common_subsequence(
    module: Any, before: str, after: str, pairs: tuple[list[int], list[int]]
) -> None:
    found = module("differences.js", "align", list(before), list(after))
    assert (found["before"], found["after"]) == pairs


def test_answers_that_still_grow_differ_only_where_both_have_a_token(module: Any) -> None:
    found = module("differences.js", "alignSoFar", list("abcd"), list("ax"))
    assert found == {"before": [0, -1, 2, 3], "after": [0, -1]}


def test_very_long_answers_are_compared_from_both_ends(module: Any) -> None:
    before = ["same"] + [f"a{n}" for n in range(2500)] + ["end"]
    after = ["same"] + [f"b{n}" for n in range(2500)] + ["end"]
    found = module("differences.js", "align", before, after)
    assert [found["after"][0], found["after"][1], found["after"][-1]] == [0, -1, 2501]


def test_a_state_survives_its_address_and_a_strangers_address_only_what_fits(module: Any) -> None:
    state = {
        "model": "m", "kind": "text", "prompt": "50% of “#&?=+/” \n", "max_tokens": 8, "temperature": 0.5,
        "interventions": [{"method": "zerotuning", "gamma": 2}], "words": "a\nb", "rows": "all",
    }  # fmt: skip
    address = module(
        "address.js", "writeAddress", {**state, "key": "secret", "pictures": ["data:"]}
    )
    assert address.startswith("#") and "secret" not in address
    assert module("address.js", "readAddress", address) == state
    for hostile in ("", "#", "#%", "#null", "#[1]", "#%7B%22prompt%22%3A1%7D", "#{{{"):
        assert module("address.js", "readAddress", hostile) == {}
    wrong = {"kind": "other", "max_tokens": "1", "interventions": [{"gamma": 1}], "__proto__": {}}
    assert module("address.js", "readAddress", "#" + json.dumps(wrong)) == {}


def test_numbers_are_read_as_they_are_typed(module: Any) -> None:
    read = module("schema.js", "readNumbers", " 0, 2  5..7,-1,-3..-2, 1.5 x 9..1")
    assert read == [0, 2, 5, 6, 7, -1, -3, -2, 1.5, "x"]
    assert len(module("schema.js", "readNumbers", "0..999999")) == 1024


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "number", "default": 3}, 3),
        ({"type": "number", "examples": [1.6], "minimum": 0, "maximum": 9}, 1.6),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, 0.5),
        ({"type": "integer", "minimum": 1, "exclusiveMaximum": 2**31}, 1),
        ({"type": "integer", "minimum": -1000, "maximum": 9999}, 0),
        ({"anyOf": [{"type": "null"}, {"enum": ["a", "b"]}]}, "a"),
        ({"oneOf": [{"const": "all"}, {"type": "array", "items": {"type": "integer"}}]}, "all"),
        ({"type": "array", "minItems": 1, "items": {"type": "object", "properties": {}}}, [{}]),
    ],
)
def test_a_field_that_has_to_be_given_begins_with_something_that_fits(
    module: Any, schema: dict[str, Any], value: Any
) -> None:
    assert module("schema.js", "firstValue", schema) == value


def test_of_fields_of_which_one_is_needed_the_one_with_a_slider_is_given(module: Any) -> None:
    properties = {
        "budget": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]},
        "keep": {
            "anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 1}, {"type": "null"}]
        },
    }
    schema = {"properties": properties, "oneOf": [{"required": ["budget"]}, {"required": ["keep"]}]}
    assert module("schema.js", "firstObject", schema) == {"keep": 0.5}


def test_events_are_read_however_they_are_cut(blank: Any) -> None:
    text = ': hello\n\ndata: {"a": "é\\n"}\r\n\r\ndata: {"b":\ndata: 2}\n\ndata: [DONE]\n\ndata: {"c": 3}\n\n'
    code = """async ([text, size]) => {
      const { eventsOf } = await import("/playground/stream.js");
      const chunks = (async function* () {
        for (let at = 0; at < text.length; at += size) yield text.slice(at, at + size);
      })();
      const found = [];
      for await (const event of eventsOf(chunks)) found.push(event);
      return found;
    }"""
    for size in (1, 2, 7, 1000):
        assert blank.evaluate(code, [text, size]) == [{"a": "é\n"}, {"b": 2}], size


def test_tokens_are_read_out_of_chats_and_completions(module: Any) -> None:
    top = [{"token": "b", "logprob": -2}, {"token": "a", "logprob": -1}]
    content = [{"token": "a", "logprob": -1, "top_logprobs": top}]
    chat = {"delta": {"content": " a"}, "logprobs": {"content": content}}
    others = [{"name": "a", "logprob": -1}, {"name": "b", "logprob": -2}]
    token = {"name": "a", "text": " a", "logprob": -1, "others": others}
    assert module("stream.js", "tokensOf", chat) == [token]
    listed = {"tokens": ["a"], "token_logprobs": [-1], "top_logprobs": [{"b": -2, "a": -1}]}
    assert module("stream.js", "tokensOf", {"text": " a", "logprobs": listed}) == [token]
    bare = module("stream.js", "tokensOf", {"delta": {"content": "a b"}})
    assert bare == [{"name": "a b", "text": "a b", "logprob": None, "others": []}]
    assert module("stream.js", "tokensOf", {"delta": {"role": "assistant"}}) == []


@pytest.mark.parametrize(
    ("count", "width", "height", "first"),
    [
        (64, 100, 100, {"columns": 8, "rows": 8, "square": True}),
        (64, 200, 100, {"columns": 8, "rows": 8, "square": True}),
        (96, 150, 100, {"columns": 12, "rows": 8, "square": False}),
        (7, 100, 100, {"columns": 7, "rows": 1, "square": False}),
    ],
)
def test_the_likeliest_grid_of_an_images_keys(
    module: Any, count: int, width: int, height: int, first: dict[str, Any]
) -> None:
    found = module("attention.js", "grids", count, width, height)
    if count == 7:
        assert {(each["columns"], each["rows"]) for each in found} == {(7, 1), (1, 7)}
    else:
        assert found[0] == first


PROMPTS = ['it\'s `$HOME` \\ "quoted"\n{brace} é 😀 \\n', "plain"]


def sent_by_curl(command: str, tmp_path: Any) -> Any:
    """What the command would send: a curl that prints its arguments and its input stands in for the real one."""
    tool = tmp_path / "curl"
    tool.write_text(
        "#!/bin/bash\n"
        'for last; do :; done; if [ "$last" = @- ]; then cat; else printf %s "$last"; fi\n'
    )
    tool.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("pictures", [[], ["it's a $picture.png"]])
def test_the_curl_command_sends_the_request(
    module: Any, tmp_path: Any, prompt: str, pictures: list[str]
) -> None:
    for name in pictures:
        (tmp_path / name).write_bytes(b"\0\0\0")
    content = [*[PICTURE for _ in pictures], {"type": "text", "text": prompt}]
    body = {"messages": [{"role": "user", "content": content}], "interventions": [{"method": "x"}]}
    request = {"path": "chat/completions", "body": body, "pictures": pictures, "keyed": True}
    command = module("snippets.js", "curl", "http://127.0.0.1:8000", request)
    assert '-H "Authorization: Bearer $HEED_API_KEY"' in command
    assert sent_by_curl(command, tmp_path) == body


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("pictures", [[], ["it's a $picture.png"]])
def test_the_python_program_sends_the_request(
    module: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, prompt: str, pictures: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in pictures:
        (tmp_path / name).write_bytes(b"\0\0\0")
    content = [*[PICTURE for _ in pictures], {"type": "text", "text": prompt}]
    body = {
        "model": "m", "messages": [{"role": "user", "content": content}], "temperature": 0,
        "interventions": [{"method": "x", "flag": True, "none": None, "list": list(range(60))}],
    }  # fmt: skip
    request = {"path": "chat/completions", "body": body, "pictures": pictures, "keyed": False}
    program = module("snippets.js", "python", "http://127.0.0.1:8000", request)
    ast.parse(program)
    sent: dict[str, Any] = {}

    class Told:
        """Answers every attribute and call with itself, and remembers the last call's arguments."""

        def __getattr__(self, name: str) -> Told:
            return self

        def __getitem__(self, index: int) -> Told:
            return self

        def __call__(self, **given: Any) -> Told:
            sent.clear()
            sent.update(given)
            return self

    exec(program.replace("from openai import OpenAI", ""), {"OpenAI": Told()})  # noqa: S102
    assert {
        **{key: sent[key] for key in ("model", "messages", "temperature")},
        **sent["extra_body"],
    } == body
