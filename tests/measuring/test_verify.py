"""The checks of `heed verify` on stand-in servers, and its reference against the tests' own."""

from collections.abc import Sequence
from typing import Any

import pytest
from tests.reference.transformers_reference import load

from heed_server.measuring import servers as measuring_servers
from heed_server.models import bundled_model
from heed_server.verify import answers, checks
from heed_server.verify.answers import Answer, Question
from heed_server.verify.checks import Check, Servers
from heed_server.verify.command import _checked, block
from heed_server.verify.reference import Reference

BOTH = Servers("stock", "heed")
PROMPTS = [[1, 2, 3], [4, 5]]
APPLIED = [{"status": "applied"}]


def nothing() -> None:
    """Nobody is told how far a check is."""


class Behaviour:
    """What the two servers answer. moves: servers whose plain answers change beside others; off: what
    Heed's plain answers are off by."""

    def __init__(self, moves: Sequence[str] = (), off: float = 0.0, report: Any = APPLIED) -> None:
        self.moves, self.off, self.report = moves, off, report

    def ask(self, url: str, question: Question) -> Answer:
        edited = question.interventions not in (None, [], checks.NEUTRAL)
        value = float(sum(question.prompt)) + (self.off if url == "heed" else 0)
        return Answer(list(question.prompt), [value + edited], list(self.report) if edited else [])

    def ask_together(self, url: str, questions: Sequence[Question]) -> list[Answer]:
        found = [self.ask(url, question) for question in questions]
        if url in self.moves:
            found[0] = Answer(found[0].tokens, [-1.0], [])
        return found


def behave(monkeypatch: pytest.MonkeyPatch, behaviour: Behaviour) -> None:
    monkeypatch.setattr(checks, "ask", behaviour.ask)
    monkeypatch.setattr(checks, "ask_together", behaviour.ask_together)


def test_equal_bits_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    behave(monkeypatch, Behaviour())
    assert checks.identity(BOTH, PROMPTS, nothing, neutral=True).verdict == "pass"
    assert checks.isolation(BOTH, PROMPTS, nothing).verdict == "pass"


def test_other_bits_than_stock_fail_and_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    behave(monkeypatch, Behaviour(off=1e-7))
    check = checks.identity(BOTH, PROMPTS, nothing, neutral=False)
    assert check.verdict == "fail"
    assert "plain, 3 tokens" in check.said and "neutral" not in check.said


def test_a_check_tells_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    behave(monkeypatch, Behaviour())
    _checked("isolation", 6, lambda done: checks.isolation(BOTH, PROMPTS, done))
    _checked("identity", 2, lambda done: checks.identity(BOTH, PROMPTS, done, neutral=True))
    assert capsys.readouterr().err.splitlines() == [
        "isolation: 6 of 6 runs", "identity: 2 of 2 runs",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("moves", "verdict"),
    [(["heed"], "fail"), (["stock"], "unknown"), (["stock", "heed"], "unknown")],
)
def test_isolation_is_judged_where_stock_itself_is_steady(
    monkeypatch: pytest.MonkeyPatch, moves: list[str], verdict: str
) -> None:
    behave(monkeypatch, Behaviour(moves=moves))
    assert checks.isolation(BOTH, PROMPTS, nothing).verdict == verdict


@pytest.mark.parametrize(
    ("error", "dtype", "verdict"),
    [(1e-5, "float32", "pass"), (0.1, "float32", "fail"), (0.1, "bfloat16", "unknown")],
)
def test_the_reference_is_judged_in_float32(
    monkeypatch: pytest.MonkeyPatch, error: float, dtype: str, verdict: str
) -> None:
    behave(monkeypatch, Behaviour())

    def logprobs(prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        return [float(sum(prompt)) + 1 + error]

    assert checks.reference(BOTH, PROMPTS, nothing, logprobs, dtype).verdict == verdict


def test_an_edit_that_was_not_applied_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    behave(monkeypatch, Behaviour(report=[{"status": "skipped"}]))
    check = checks.reference(BOTH, PROMPTS, nothing, lambda prompt, answer: [0.0], "float32")
    assert check.verdict == "fail" and "not applied" in check.said


def test_its_reference_agrees_with_that_of_the_tests() -> None:
    model = bundled_model("heed-tiny")
    assert model is not None
    prompt, answer = list(range(20, 60)), [30, 31, 32, 33]
    found = Reference(str(model.directory), checks.GAMMA).logprobs(prompt, answer)
    edit = [{"method": "zerotuning", "gamma": checks.GAMMA}]
    expected = load(str(model.directory)).generate(prompt, edit, forced_tokens=answer)
    assert found == pytest.approx(expected.token_logprobs, abs=1e-5)


def test_prompts_leave_room_for_an_answer() -> None:
    assert [len(p) for p in checks.prompts_below(2048, 512)] == list(checks.LENGTHS)
    (short,) = checks.prompts_below(2048, 20)
    assert len(short) + answers.TOKENS <= 20 and max(short) < 2048


def test_the_block_says_what_was_checked_and_what_is_missing() -> None:
    found = {
        "heed": "0.1.0", "vllm": "0.32.0", "python": "3.11", "machine": "Linux", "dtype": "float32",
        "model": {"id": "m"}, "flags": ["--x"], "available": ["zerotuning"],
        "checks": [Check("identity", "pass", "same").__dict__],
        "unavailable": {"vhr": "no image", "var": "no image"},
    }  # fmt: skip
    text = block(found)
    assert text.startswith("```\nheed verify 0.1.0") and text.endswith("```")
    assert "PASS    identity   same" in text and "flags: --x" in text
    assert "not here: vhr, var: no image" in text


def test_a_refusal_of_the_server_is_an_error() -> None:
    with pytest.raises(measuring_servers.ServerError):
        answers.ask("http://127.0.0.1:9", Question([1]))
