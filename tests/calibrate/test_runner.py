"""Scores, batches, and the journal that lets a sweep go on."""

import asyncio
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.scoring.stand_in import StandIn, two_way

from heed_server.calibrate.errors import CalibrationError
from heed_server.calibrate.journal import Journal, digest
from heed_server.calibrate.runner import Runner
from heed_server.progress import Progress
from heed_server.scoring.calls import PLAIN, Kind
from heed_server.scoring.data import Item
from heed_server.scoring.prompts import Prepared, prepare
from heed_server.scoring.scores import Scores

TUNED = [{"method": "zerotuning", "gamma": 2.0}]


def rule(prompt: list[int], edits: list[dict[str, Any]]) -> dict[int, float]:
    """Positive at 0.8, and at 0.4 under any edit."""
    return two_way(0.4 if edits else 0.8)


def items(client: StandIn, count: int = 5, **fields: Any) -> list[Prepared]:
    blank: dict[str, Any] = {"task": "t", "where": "line", "messages": None}
    blank |= {"choices": ("p", "n"), "answer": "p"} | fields
    made = [Item(prompt=f"{number}: is it? ", **blank) for number in range(count)]
    return asyncio.run(prepare(client, made))


def measure(
    client: StandIn,
    journal: Path,
    prepared: list[Prepared],
    kind: Kind = "choices",
    batch: int = 3,
    served: str = "m",
) -> list[Scores]:
    with Journal(journal) as book:
        runner = Runner(
            client, book, Progress(io.StringIO()), served=served, batch=batch, most_tokens=4
        )
        return asyncio.run(runner.measure("all", [PLAIN, TUNED], prepared, kind))


def test_choices_are_scored_by_their_share_of_the_probability(tmp_path: Path) -> None:
    client = StandIn(rule)
    plain, tuned = measure(client, tmp_path / "j", items(client))
    assert plain.right.tolist() == [1] * 5 and tuned.right.tolist() == [0] * 5
    np.testing.assert_allclose(plain.likelihood, math.log(0.8))
    np.testing.assert_allclose(tuned.likelihood, math.log(0.4))
    np.testing.assert_allclose(plain.entropy, -0.8 * math.log(0.8) - 0.2 * math.log(0.2))


def test_prompts_share_requests_and_none_is_larger_than_asked(tmp_path: Path) -> None:
    client = StandIn(rule)
    measure(client, tmp_path / "j", items(client))
    assert sorted(len(request["prompt"]) for request in client.requests) == [2, 2, 3, 3]
    assert [request["interventions"] for request in client.requests].count(TUNED) == 2


def test_a_choice_outside_of_the_likeliest_tokens_is_scored_all_the_same(tmp_path: Path) -> None:
    client = StandIn(rule)
    plain, _ = measure(client, tmp_path / "j", items(client, choices=("p", "z")))
    np.testing.assert_allclose(plain.likelihood, 0, atol=1e-6)
    assert any("prompt_logprobs" in request for request in client.requests)


def test_choices_of_several_tokens_are_sums_and_count_as_generated(tmp_path: Path) -> None:
    client = StandIn(rule)
    fields = {"choices": ("pn", "pp"), "answer": "pp", "emphasise": "is it"}
    prepared = items(client, count=2, **fields)
    with Journal(tmp_path / "j") as book:
        runner = Runner(client, book, Progress(io.StringIO()), served="m", batch=8, most_tokens=4)
        emphasis = {"method": "emphasis", "alpha": 0.1}
        plain, _ = asyncio.run(runner.measure("all", [PLAIN, [emphasis]], prepared, "choices"))
    np.testing.assert_allclose(plain.likelihood, math.log(0.8))
    spans = [request["interventions"][0]["spans"] for request in client.requests[1:]]
    length = len(prepared[0].prompt)
    assert spans[0] == [{"text": "is it"}, {"start": length, "end": length + 2}]


def test_texts_are_right_when_they_are_the_answer(tmp_path: Path) -> None:
    client = StandIn(rule)
    plain, tuned = measure(client, tmp_path / "j", items(client, choices=()), "text")
    assert plain.right.mean() == 1 and tuned.right.mean() == 0
    assert np.isnan(plain.likelihood).all()


def test_entropy_needs_no_labels_and_counts_the_rest_as_one_outcome(tmp_path: Path) -> None:
    client = StandIn(lambda *_: {1: math.log(0.5), 2: math.log(0.25)})
    plain, _ = measure(client, tmp_path / "j", items(client, choices=(), answer=None), "entropy")
    np.testing.assert_allclose(plain.entropy, 1.5 * math.log(2))


def test_an_interrupted_sweep_goes_on_where_it_stopped(tmp_path: Path) -> None:
    class Dying(StandIn):
        async def complete(self, body: Any) -> list[dict[str, Any]]:
            if len(self.requests) == 2:
                raise ConnectionError
            return await super().complete(body)

    dying, journal = Dying(rule), tmp_path / "j"
    with pytest.raises(ConnectionError):
        measure(dying, journal, items(dying))
    # The process was killed while it wrote.
    with journal.open("a") as file:
        file.write('{"key": "abc", "va')
    again, whole = StandIn(rule), StandIn(rule)
    resumed = measure(again, journal, items(again), batch=2)
    assert 0 < again.prompts < 10
    for one, other in zip(resumed, measure(whole, tmp_path / "k", items(whole)), strict=True):
        np.testing.assert_array_equal(one.likelihood, other.likelihood)
    nothing = StandIn(rule)
    measure(nothing, journal, items(nothing))
    assert nothing.prompts == 0


KILLED = """
import asyncio, sys
from pathlib import Path
from tests.scoring.stand_in import StandIn
from tests.calibrate.test_runner import items, measure, rule

class OneAtATime(StandIn):
    turn = asyncio.Lock()

    async def complete(self, body):
        async with self.turn:
            await asyncio.sleep(0.02)
            return await super().complete(body)

client = OneAtATime(rule)
measure(client, Path(sys.argv[1]), items(client, count=200), batch=1)
"""


def test_a_sweep_whose_process_was_killed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    journal = tmp_path / "j"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(journal)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        cwd=Path(__file__).parents[2],
    )
    try:
        deadline = time.monotonic() + 60
        while not (journal.exists() and journal.read_text().count("\n") >= 5):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    measured = journal.read_text().count("\n")
    again, whole = StandIn(rule), StandIn(rule)
    resumed = measure(again, journal, items(again, count=200))
    assert again.prompts == 400 - measured > 0
    for one, other in zip(
        resumed, measure(whole, tmp_path / "k", items(whole, count=200)), strict=True
    ):
        np.testing.assert_array_equal(one.likelihood, other.likelihood)


def test_what_was_measured_of_something_else_is_not_taken(tmp_path: Path) -> None:
    client = StandIn(rule)
    measure(client, tmp_path / "j", items(client))
    for changed in ({"answer": "n"}, {"choices": ("n", "p")}):
        other = StandIn(rule)
        measure(other, tmp_path / "j", items(other, **changed))
        assert other.prompts == 10
    other = StandIn(rule)
    measure(other, tmp_path / "j", items(other), served="another precision")
    assert other.prompts == 10
    assert digest("a", {"x": 1}) == digest("a", {"x": 1}) != digest("b", {"x": 1})


@pytest.mark.parametrize("value", [3, [], {}, {"right": 1.0}, {"right": "yes"}])
def test_a_journal_of_something_else_is_told_as_such(tmp_path: Path, value: Any) -> None:
    client = StandIn(rule)
    measure(client, tmp_path / "j", items(client, count=1))
    entry = json.loads((tmp_path / "j").read_text().splitlines()[0]) | {"value": value}
    (tmp_path / "j").write_text(json.dumps(entry) + "\n")
    with pytest.raises(CalibrationError, match="where a score should stand"):
        measure(client, tmp_path / "j", items(client, count=1))


def test_progress_is_plain_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    progress.begin("sweep", 10)
    progress.settled(4, known=True)
    progress.answered(6)
    progress.settled(6)
    assert progress.end() > 0
    said = stream.getvalue()
    assert said.startswith("sweep: 10 of 10 runs, 4 of them from the journal, ")
    assert said.endswith(" prompts/s\n") and "\r" not in said


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal() -> None:
    stream = Terminal()
    progress = Progress(stream)
    for total in (10, 2):
        progress.begin("sweep", total)
        progress.settled(total - 2, known=True)
        progress.answered(2)
        progress.settled(2)
        assert progress.end() > 0
    drawn = stream.getvalue().split("\r")
    assert "sweep: 100%" in drawn[-1] and "2/2" in drawn[-1] and drawn[-1].endswith("\n")
    assert any("10/10" in each and "8 of them from the journal" in each for each in drawn)
    assert " prompts/s]" in drawn[-1]


def test_a_journal_is_json_lines(tmp_path: Path) -> None:
    client = StandIn(rule)
    measure(client, tmp_path / "j", items(client, count=1))
    entries = [json.loads(line) for line in (tmp_path / "j").read_text().splitlines()]
    assert len(entries) == 2 and set(entries[0]) == {"key", "value"}
