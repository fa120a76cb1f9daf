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
from load_mix import Ask, Got, ask_all, asks, tally

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


def assert_answers(crowd: list[Got], expected: dict[int, Got]) -> None:
    for got in crowd:
        one = expected[got.ask.kind]
        what = f"kind {got.ask.kind}, {got.ask.manner}: {got.ask.body['interventions']}"
        assert not got.error, f"{what}: {got.error}"
        assert one.finished and not one.error, f"{what}: alone: {one.error}"
        if not got.finished:
            assert got.ask.manner in ("leaves", "hurries"), what
            continue
        assert got.tokens == one.tokens, what
        assert got.methods == one.methods, what
        if got.ask.body["interventions"]:
            worst, _ = largest_difference(got.logprobs, one.logprobs)
            assert worst <= EDITED_TOLERANCE, f"{what}: {worst}"
        else:
            assert got.logprobs == one.logprobs, what


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
    assert_answers(crowd, expected)
    counts = tally(crowd)
    assert counts["finished"] >= CLIENTS * 5 // 7 and counts["left"] > 0
    assert_nothing_is_left(server)


def test_a_storm_of_preemptions_loses_nothing(cramped_server: LiveServer) -> None:
    """A cache of 1,024 tokens under 120 clients, whose prompts have up to 270 tokens."""
    # ACT's statistics of the whole prompt take one step, which holds 128 tokens there.
    clients = [
        ask
        for ask in asks(cramped_server, 120, seed=1)
        if len(ask.body["prompt"]) <= 128 or "act" not in methods(ask)
    ]
    expected = alone(cramped_server, clients)
    before = cramped_server.metric("vllm:num_preemptions_total")
    crowd = run(cramped_server, clients, len(clients))
    assert_answers(crowd, expected)
    assert cramped_server.metric("vllm:num_preemptions_total") > before
    assert_nothing_is_left(cramped_server)


def test_the_same_clients_can_be_sent_to_any_server(server: LiveServer) -> None:
    """The command of docs/operations.md."""
    command = [sys.executable, str(SCRIPT), "--url", server.url, "--clients", "70"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert said["finished"] >= 50 and said["errors"] == {}
    assert_nothing_is_left(server)
