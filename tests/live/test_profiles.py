"""Profiles of a running server: by field, by model name, in a list, and read again on a signal."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from live_server import Body, LiveServer
from test_refusals import assert_refused

from heed_server.profiles.profile import Profile
from heed_server.profiles.writing import write_profile

TUNED = {"gamma": 2.0, "heads": {"1": [0, 3], "2": [1]}}
SPAN = [{"text": "red door"}]
TEXT = "The red door is open."


def listed(server: LiveServer) -> Body:
    answer: Body = server.client.get("/v1/intervention-profiles").json()
    return answer


@pytest.fixture(scope="module")
def directory(server: LiveServer) -> Path:
    """The server's directory, with profiles that it was told of by a signal."""
    if server.pid is None:
        pytest.skip("the running server is somebody else's")
    root = Path(server.flags[server.flags.index("--profiles") + 1])
    model = listed(server)["model"]
    other = model | {"fingerprint": "heed1:0"}
    for name, method, parameters, made_for in (
        ("tuned", "zerotuning", TUNED, model),
        ("span", "emphasis", {"alpha": 0.1, "layers": [1]}, model),
        ("weakened", "head_gain", {"gain": 0.5, "layers": [0]}, model),
        ("alien", "zerotuning", TUNED, other),
    ):
        document: Body = {"schema": 1, "name": name, "method": method, "heed": "0"}
        document |= {"model": made_for, "parameters": parameters}
        write_profile(root, Profile.model_validate(document))
    (root / "cut").mkdir()
    (root / "cut" / "profile.json").write_text('{"schema": 1, "na')
    os.kill(server.pid, signal.SIGHUP)
    deadline = time.monotonic() + 20
    while not listed(server)["refused"] and time.monotonic() < deadline:
        time.sleep(0.1)
    return root


def test_the_list_says_what_was_loaded_and_what_was_refused(
    server: LiveServer, directory: Path
) -> None:
    answer = listed(server)
    assert [entry["name"] for entry in answer["data"]] == ["span", "tuned", "weakened"]
    names = [entry["model_name"] for entry in answer["data"]]
    assert names == [None, f"{server.model}@tuned", f"{server.model}@weakened"]
    assert answer["data"][1]["parameters"] == TUNED
    refused = {entry["name"]: entry["reason"] for entry in answer["refused"]}
    assert set(refused) == {"alien", "cut"}
    assert "was made for" in refused["alien"] and "JSON" in refused["cut"]


def test_a_profile_is_its_parameters(server: LiveServer, directory: Path) -> None:
    prompt = server.prompt(60)
    by_name = server.fresh(prompt, [{"method": "zerotuning", "profile": "tuned"}])
    by_hand = server.fresh(prompt, [{"method": "zerotuning", **TUNED}])
    assert (by_name.tokens, by_name.logprobs) == (by_hand.tokens, by_hand.logprobs)
    assert by_name.report is not None and by_hand.report is not None
    assert by_name.report[0].pop("profile") == "tuned"
    assert by_name.report == by_hand.report
    assert by_name.report[0]["head_count"] == 3


def test_what_a_request_writes_beside_a_profile_wins(server: LiveServer, directory: Path) -> None:
    edit = {"method": "zerotuning", "profile": "tuned", "gamma": 1}
    assert server.chat("Hi", interventions=[edit]).json()["interventions"][0]["status"] == "neutral"
    edit = {"method": "zerotuning", "profile": "tuned", "layers": [0], "report": "full"}
    report = server.chat("Hi", interventions=[edit]).json()["interventions"][0]
    assert set(report["heads"]) == {"0"}


def test_a_profile_may_leave_something_to_the_request(server: LiveServer, directory: Path) -> None:
    edit = {"method": "emphasis", "profile": "span", "spans": SPAN}
    report = server.raw_completion(TEXT, interventions=[edit]).json()["interventions"][0]
    assert report["status"] == "applied" and report["layer_count"] == 1
    del edit["spans"]
    assert_refused(server.raw_completion(TEXT, interventions=[edit]), "interventions.0.spans")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_profile_can_be_asked_for_as_a_model(
    server: LiveServer, directory: Path, path: str
) -> None:
    names = [card["id"] for card in server.client.get("/v1/models").json()["data"]]
    assert names == [server.model, f"{server.model}@tuned", f"{server.model}@weakened"]
    body: Body = {"model": f"{server.model}@tuned", "max_tokens": 4, "temperature": 0}
    body |= {"prompt": TEXT, "messages": [{"role": "user", "content": TEXT}]}
    body.pop("prompt" if "chat" in path else "messages")
    report = server.post(path, body).json()["interventions"][0]
    assert (report["status"], report["profile"], report["source"]) == (
        *("applied", "tuned"),
        "request",
    )
    more = body | {"interventions": [{"method": "locore"}]}
    both = server.post(path, more).json()["interventions"]
    assert [report["method"] for report in both] == ["locore", "zerotuning"]
    told = server.post("/v1/interventions/validate", body).json()["interventions"][0]
    assert (told["status"], told["profile"]) == ("applied", "tuned")


REFUSED: list[tuple[Any, int, str]] = [
    ({"method": "zerotuning", "profile": "none"}, 404, "tuned"),
    ({"method": "zerotuning", "profile": "alien"}, 400, "was made for"),
    ({"method": "zerotuning", "profile": "cut"}, 400, "JSON"),
    ({"method": "zerotuning", "profile": "../tuned"}, 400, "no name of a profile"),
    ({"method": "locore", "profile": "tuned"}, 400, "zerotuning"),
    ({"method": "zerotuning", "profile": {}}, 400, "must be the name"),
]


@pytest.mark.parametrize(("edit", "code", "words"), REFUSED, ids=str)
def test_a_profile_that_cannot_be_had_is_refused_and_named(
    server: LiveServer, directory: Path, edit: Body, code: int, words: str
) -> None:
    for stream in (False, True):
        response = server.chat("Hello", interventions=[edit], stream=stream)
        assert words in assert_refused(response, "interventions.0.profile", code)
    body = {"model": server.model, "prompt": "Hello", "interventions": [edit]}
    told = server.post("/v1/interventions/validate", body)
    assert words in assert_refused(told, "interventions.0.profile", code)


@pytest.mark.parametrize(
    ("name", "code"), [("absent", 404), ("span", 400), ("alien", 400), ("a/b", 404)]
)
def test_a_model_name_with_an_unusable_profile_is_refused(
    server: LiveServer, directory: Path, name: str, code: int
) -> None:
    response = server.chat("Hello", model=f"{server.model}@{name}")
    assert_refused(response, "model", code)


def test_a_privileged_profile_needs_permission(server: LiveServer, directory: Path) -> None:
    edit = {"method": "head_gain", "profile": "weakened"}
    assert_refused(server.chat("Hello", interventions=[edit]), "interventions.0.gain", 403)
