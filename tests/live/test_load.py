"""Two hundred clients at once: nothing is lost, nothing is mixed up, and nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conformance import largest_difference
from live_server import LiveServer
from load_mix import FREED, IMPATIENT, Ask, Got, ask_all, asks, tally

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("load_mix.py")
CLIENTS = 200
# Plain requests repeat bit for bit; edited ones may split their work by what is in the cache.
EDITED_TOLERANCE = 2e-5


def run(server: LiveServer, clients: list[Ask], at_once: int) -> list[Got]:
    return asyncio.run(ask_all(server.url, clients, at_once))


def alone(server: LiveServer, clients: list[Ask]) -> dict[int, Got]:
    """The answer to each kind of body when nobody else asks."""
    one_each = {ask.kind: replace(ask, manner="whole") for ask in clients}
    return {got.ask.kind: got for got in run(server, list(one_each.values()), 1)}


def methods(ask: Ask) -> list[str]:
    return [edit["method"] for edit in ask.body["interventions"]]


def patient(clients: list[Ask]) -> int:
    """How many wait for their answers."""
    return sum(ask.manner not in IMPATIENT for ask in clients)


def counts(got: Got, *, freed: bool) -> list[dict[str, object]]:
    """What its reports say, with or without the blocks that were freed."""
    return [{k: v for k, v in report.items() if freed or k != FREED} for report in got.reports]


def assert_answers(crowd: list[Got], expected: dict[int, Got], *, preempted: bool) -> None:
    """Each is what it is alone, and what a client saw that left is the beginning of that."""
    for got in crowd:
        one = expected[got.ask.kind]
        what = f"kind {got.ask.kind}, {got.ask.manner}: {got.ask.body['interventions']}"
        assert not got.error, f"{what}: {got.error}"
        assert one.finished and not one.error, f"{what}: alone: {one.error}"
        assert got.finished or got.ask.manner in IMPATIENT, what
        seen = len(one.tokens) if got.finished else len(got.tokens)
        assert got.tokens == one.tokens[:seen], what
        logprobs = one.logprobs[:seen]
        if got.ask.body["interventions"] and seen:
            worst, _ = largest_difference(got.logprobs, logprobs)
            assert worst <= EDITED_TOLERANCE, f"{what}: {worst}"
        else:
            assert got.logprobs == logprobs, what
        if got.finished:
            freed = not got.ask.shares and not preempted
            assert counts(got, freed=freed) == counts(one, freed=freed), what


def assert_nothing_is_left(server: LiveServer) -> None:
    """No request runs or waits, no KV block is held, no row of the edit table is in use."""
    names = ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"]
    names.append("heed_edit_table_rows")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = {name: server.metric(name) for name in names}
        if not any(found.values()):
            return
        time.sleep(0.5)
    raise AssertionError(f"left behind: {found}")


def test_200_concurrent_clients_each_get_what_they_would_have_got_alone(server: LiveServer) -> None:
    clients = asks(server, CLIENTS)
    expected = alone(server, clients)
    crowd = run(server, clients, CLIENTS)
    assert len(crowd) == CLIENTS
    assert_answers(crowd, expected, preempted=False)
    ways = tally(crowd)
    assert ways["finished"] >= patient(clients) and ways["left"] > 0
    assert any(got.tokens and not got.finished for got in crowd), "nobody has left in the middle"
    assert any(FREED in report for got in crowd if not got.ask.shares for report in got.reports)
    assert_nothing_is_left(server)


def test_a_storm_of_preemptions_loses_nothing(cramped_server: LiveServer) -> None:
    """A cache of 1,024 tokens under 120 clients, whose prompts have up to 270 tokens."""
    # ACT's statistics of the whole prompt take one step, which holds 128 tokens there.
    clients = [
        ask
        for ask in asks(cramped_server, 120, seed=1)
        if "act" not in methods(ask) or ("prompt" in ask.body and len(ask.body["prompt"]) <= 128)
    ]
    expected = alone(cramped_server, clients)
    before = cramped_server.metric("vllm:num_preemptions_total")
    crowd = run(cramped_server, clients, len(clients))
    assert_answers(crowd, expected, preempted=True)
    assert cramped_server.metric("vllm:num_preemptions_total") > before
    assert_nothing_is_left(cramped_server)


def test_the_same_clients_can_be_sent_to_any_server(server: LiveServer) -> None:
    """The command of docs/operations.md."""
    command = [sys.executable, str(SCRIPT), "--url", server.url, "--clients", "70"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert said["finished"] >= patient(asks(server, 70)) and said["errors"] == {}
    assert_nothing_is_left(server)
