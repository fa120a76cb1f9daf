"""`--default-interventions`: where they hold, where they give way, and that they never cause an error."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.server.door_maker import door
from vllm.sampling_params import SamplingParams

from heed_interventions import parse
from heed_kernels.errors import EditError
from heed_server.api.door import Door
from heed_server.api.errors import RefusedError
from heed_server.api.exchange import CURRENT, Exchange
from heed_server.api.requests import HeedCompletionRequest, exchange_of
from heed_server.engine.payload import RESERVED_KEY
from heed_server.settings import Settings, SettingsError, read_interventions

ZEROTUNING: dict[str, Any] = {"method": "zerotuning", "gamma": 2}
LOCORE: dict[str, Any] = {"method": "locore"}
ABSENT: dict[str, Any] = {"method": "emphasis", "spans": [{"start": 9000, "end": 9001}]}
PRIVILEGED: dict[str, Any] = {"method": "head_gain", "gain": 0.5}
PROMPT: dict[str, Any] = {"prompt_token_ids": [1] * 40}


def with_defaults(*defaults: dict[str, Any], table: Any = None) -> Door:
    return door(settings=Settings(default_interventions=defaults), table=table)


def exchange(standing: Door, **fields: Any) -> Exchange | None:
    request = HeedCompletionRequest(model="tiny", prompt="Hello", **fields)
    return exchange_of(request, standing.profiles, lambda name: True, None)


@contextmanager
def current(exchange: Exchange | None) -> Iterator[None]:
    token = CURRENT.set(exchange)
    try:
        yield
    finally:
        CURRENT.reset(token)


def sent(standing: Door, made: Exchange | None, prompt: Any = PROMPT, times: int = 1) -> list[Any]:
    """The sampling parameters with which the engine is called."""
    calls: list[Any] = []

    def stock(prompt: Any, params: SamplingParams, request_id: str) -> Any:
        calls.append(params)
        return calls

    with current(made):
        for _ in range(times):
            standing.generate(stock, prompt, SamplingParams(max_tokens=4), "id")
    return calls


@pytest.mark.parametrize("fields", [{}, {"interventions": None}], ids=["missing", "null"])
def test_a_request_that_says_nothing_has_the_defaults(fields: dict[str, Any]) -> None:
    standing = with_defaults(ZEROTUNING, LOCORE)
    made = exchange(standing, **fields)
    assert made is not None
    assert [method.method for method in made.methods] == ["zerotuning", "locore"]
    assert (made.source, made.asked, made.skipped) == ("default", False, None)
    (params,) = sent(standing, made)
    assert RESERVED_KEY in params.extra_args
    (request,) = made.engine_requests
    found = [(report["status"], report["source"]) for report in request.resolution.reports]
    assert found == [("applied", "default")] * 2


def test_without_defaults_a_request_that_says_nothing_is_no_exchange() -> None:
    standing = door()
    assert exchange(standing) is None
    (params,) = sent(standing, None)
    assert not params.extra_args


def test_an_empty_list_is_plain_whatever_the_defaults() -> None:
    standing = with_defaults(ZEROTUNING)
    made = exchange(standing, interventions=[])
    assert made is not None and (list(made.methods), made.source) == ([], "request")
    (params,) = sent(standing, made)
    assert not params.extra_args and not made.engine_requests


def test_a_list_takes_the_place_of_the_defaults() -> None:
    made = exchange(with_defaults(ZEROTUNING), interventions=[LOCORE])
    assert made is not None
    assert [method.method for method in made.methods] == ["locore"]
    assert (made.source, made.asked) == ("request", True)


@pytest.mark.parametrize("unfit", [ABSENT, PRIVILEGED], ids=["no such span", "privileged"])
def test_a_default_that_does_not_fit_is_left_out_alone_and_says_why(unfit: dict[str, Any]) -> None:
    standing = with_defaults(unfit, ZEROTUNING)
    made = exchange(standing)
    (params,) = sent(standing, made)
    assert made is not None and RESERVED_KEY in params.extra_args
    (request,) = made.engine_requests
    skipped, applied = request.resolution.reports
    assert (skipped["status"], skipped["source"], applied["status"]) == (
        "skipped", "default", "applied",
    )  # fmt: skip
    assert skipped["reason"]
    asked = exchange(standing, interventions=[unfit])
    with pytest.raises(RefusedError):
        sent(standing, asked)


def test_defaults_are_left_out_of_a_prompt_of_embeddings() -> None:
    standing = with_defaults(ZEROTUNING)
    made = exchange(standing)
    (params,) = sent(standing, made, {"prompt_embeds": object()})
    assert made is not None and not params.extra_args
    assert "embeddings" in made.engine_requests[0].resolution.reports[0]["reason"]
    with pytest.raises(RefusedError, match="embeddings"):
        sent(standing, exchange(standing, interventions=[LOCORE]), {"prompt_embeds": object()})


def test_defaults_that_no_worker_could_carry_out_together_are_left_out() -> None:
    class Full:
        def insert(self, edits: Any) -> int:
            raise EditError("no room")

        def release(self, slot: int) -> None: ...

    standing = with_defaults(ZEROTUNING, table=Full())
    made = exchange(standing)
    (params,) = sent(standing, made)
    assert made is not None and not params.extra_args
    report = made.engine_requests[0].resolution.reports[0]
    assert report["status"] == "skipped" and "no room" in report["reason"]
    with pytest.raises(RefusedError, match="no room"):
        sent(standing, exchange(standing, interventions=[ZEROTUNING]))


def test_defaults_are_left_out_of_a_beam_search_and_told_once() -> None:
    standing = with_defaults(ZEROTUNING)
    made = exchange(standing, use_beam_search=True)
    assert made is not None and made.skipped is not None and "use_beam_search" in made.skipped
    calls = sent(standing, made, times=3)
    assert len(calls) == 3 and not any(params.extra_args for params in calls)
    (request,) = made.engine_requests
    assert request.resolution.reports[0]["status"] == "skipped"
    with pytest.raises(RefusedError) as refusal:
        exchange(standing, use_beam_search=True, interventions=[ZEROTUNING])
    assert refusal.value.parameter == "use_beam_search"
    plain = exchange(standing, use_beam_search=True, interventions=[])
    assert plain is not None and plain.skipped is None


def written(directory: Path, content: Any) -> Path:
    path = directory / "defaults.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_file_of_defaults_is_a_list_as_in_a_request(tmp_path: Path) -> None:
    path = written(tmp_path, [ZEROTUNING, {"method": "zerotuning", "profile": "read later"}])
    assert read_interventions(path)[0] == ZEROTUNING
    variable = {"HEED_DEFAULT_INTERVENTIONS": str(path)}
    assert len(Settings.from_environment(variable).default_interventions) == 2
    assert read_interventions(written(tmp_path, [])) == ()
    assert parse(list(read_interventions(written(tmp_path, [LOCORE]))))[0].method == "locore"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        (ZEROTUNING, "interventions"),
        ([{"method": "zerotunning"}], "interventions.0.method"),
        ([ZEROTUNING | {"gamma": 11}], "interventions.0.gamma"),
        ([LOCORE] * 9, "interventions"),
        ([{"method": "locore", "profile": "any"}, {"method": "zerotuning"}], "interventions.1.gamma"),
    ],
)  # fmt: skip
def test_a_file_of_defaults_that_cannot_be_used_is_named(
    tmp_path: Path, content: Any, words: str
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(SettingsError) as refusal:
        read_interventions(path)
    assert str(refusal.value).startswith(str(path)) and words in str(refusal.value)


def test_a_file_of_defaults_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        read_interventions(tmp_path / "none.json")
