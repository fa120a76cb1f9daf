"""What `--interventions` takes, how settings are called, and what is refused before anything starts."""

import json
from pathlib import Path

import pytest

from heed_server.cli import main
from heed_server.evaluate.settings import named_settings, settings_of, uses_spans_of_items
from heed_server.scoring.errors import ScoringError

TUNED = [{"method": "zerotuning", "gamma": 3, "layers": [2, 3]}]
TUNED_NAME = "zerotuning gamma=3 layers=[2, 3]"


def test_a_list_is_called_by_what_is_in_it_or_as_it_is_named() -> None:
    text = json.dumps(TUNED)
    assert named_settings(text) == [(TUNED_NAME, TUNED)]
    assert named_settings(f"mine={text}") == [("mine", TUNED)]
    both = [*TUNED, {"method": "act", "profile": "sentiment"}]
    assert named_settings(json.dumps(both))[0][0] == f"{TUNED_NAME} + act profile=sentiment"


def test_files_hold_a_list_or_several_by_name(tmp_path: Path) -> None:
    one, several = tmp_path / "stronger.json", tmp_path / "several.json"
    one.write_text(json.dumps(TUNED))
    several.write_text(json.dumps({"a": TUNED, "b": [{"method": "locore"}]}))
    assert named_settings(str(one)) == [("stronger", TUNED)]
    assert [name for name, _ in named_settings(str(several))] == ["a", "b"]
    found = settings_of([named_settings(str(one)), named_settings(str(several))])
    assert list(found) == ["none", "stronger", "a", "b"] and found["none"] == ()
    with pytest.raises(ScoringError, match="both be called 'stronger'"):
        settings_of([named_settings(str(one)), named_settings(str(one))])


def test_emphasis_takes_the_spans_of_the_items_where_it_has_none() -> None:
    ((_, bare),) = named_settings('[{"method": "emphasis", "alpha": 0.1}]')
    ((_, own),) = named_settings('[{"method": "emphasis", "spans": [{"text": "now"}]}]')
    assert uses_spans_of_items(bare) and not uses_spans_of_items(own)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("absent.json", "absent.json"),
        ("[{]", "not valid JSON"),
        ("[]", "not empty"),
        ('{"method": "zerotuning"}', "are a list"),
        ('[{"method": "zerotuning"}]', "interventions.0.gamma"),
        ('a=[{"method": "zerotunin", "gamma": 2}]', "a: interventions.0.method"),
        ("[3]", "interventions.0: an intervention must be an object"),
        ('[{"method": "emphasis", "alpha": 2}]', "interventions.0.alpha"),
    ],
)
def test_what_cannot_be_used_is_named(
    text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["eval", "--task", "sentiment", "--interventions", text])
    said = capsys.readouterr().err
    assert left.value.code == 2 and "argument --interventions: " in said and words in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a --task or --data"),
        (["--task", "copy", "--url", "http://none", "--", "--dtype", "float16"], "what follows --"),
    ],
)
def test_arguments_that_do_not_fit_together_end_with_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["eval", "--interventions", json.dumps(TUNED), *arguments])
    assert left.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "sentimint"], "there is no task 'sentimint'"),
        (["--data", "absent.jsonl"], "absent.jsonl"),
        (["--task", "copy", "--json", "absent/found.json"], "no directory absent"),
    ],
)
def test_what_cannot_be_evaluated_ends_with_1_before_a_server_starts(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["eval", "--interventions", json.dumps(TUNED), *arguments])
    said = capsys.readouterr().err
    assert left.value.code == 1 and words in said and "starting a server" not in said


def test_items_without_a_span_are_named_where_emphasis_needs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "mine.jsonl"
    data.write_text('{"prompt": "Is it?", "answer": "yes"}\n')
    with pytest.raises(SystemExit) as left:
        main(["eval", "--data", str(data), "--interventions", '[{"method": "emphasis"}]'])
    assert left.value.code == 1
    assert "mine.jsonl, line 1: emphasis needs" in capsys.readouterr().err
    data.write_text('{"prompt": "Is it?"}\n')
    with pytest.raises(SystemExit):
        main(["eval", "--data", str(data), "--interventions", json.dumps(TUNED)])
    assert "mine.jsonl, line 1: there is no answer" in capsys.readouterr().err
