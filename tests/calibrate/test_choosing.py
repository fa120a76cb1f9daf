"""Which heads and parameters each method's calibration chooses, on a model that is a rule."""

import asyncio
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from tests.scoring.stand_in import Rule, StandIn, two_way

from heed_server.calibrate import emphasis, kept_heads, zerotuning
from heed_server.calibrate.bench import Bench, Choice, Objective, Sweep
from heed_server.calibrate.errors import CalibrationError
from heed_server.calibrate.evaluation import evaluate, tables, warnings
from heed_server.calibrate.heat_map import gain_map
from heed_server.calibrate.journal import Journal
from heed_server.calibrate.runner import Runner
from heed_server.calibrate.sensitivity import write_map
from heed_server.progress import Progress
from heed_server.scoring.calls import Kind
from heed_server.scoring.data import Item
from heed_server.scoring.prompts import prepare
from heed_server.scoring.statistics import Ratio, Turned, lower_bounds

SHAPE = (2, 3)
ITEMS = 40


def rule(prompt: list[int], edits: list[dict[str, Any]]) -> dict[int, float]:
    """Right with a probability that spreads over the items and that edits of some heads move.

    gamma above 1 helps on heads 0:0, 0:1 and 1:2 (most on 0:1), below 1 on 1:0 alone; 4 hurts all.
    """
    number = int(bytes(prompt).decode().split(":")[0])
    probability = 0.02 + 0.96 * number / ITEMS
    everything = {str(layer): range(SHAPE[1]) for layer in range(SHAPE[0])}
    for edit in edits:
        gamma = edit.get("gamma", edit.get("gain", edit.get("alpha", 1)))
        for layer, heads in edit.get("heads", everything).items():
            for head in heads:
                if gamma > 1:
                    gain = {"0:0": 0.1, "0:1": 0.2, "1:2": 0.06}.get(f"{layer}:{head}", -0.05)
                    probability += -abs(gain) if gamma == 4 else gain
                else:
                    probability += 0.12 if f"{layer}:{head}" == "1:0" else -0.05
    return two_way(min(max(probability, 0.01), 0.99))


def run(
    tmp_path: Path,
    choose: Callable[[Bench], Any],
    kind: Kind = "choices",
    objective: Objective = "likelihood",
    tasks: tuple[str, ...] = ("t",),
    answers: Rule = rule,
    layers: Sequence[int] | None = None,
) -> Any:
    client = StandIn(answers)

    async def chosen() -> Any:
        made = {
            task: await prepare(client, [_item(task, number) for number in range(ITEMS)])
            for task in tasks
        }
        with Journal(tmp_path / "j") as book:
            runner = Runner(
                client, book, Progress(io.StringIO()), served="m", batch=16, most_tokens=4
            )
            bench = Bench(
                runner, made, shape=SHAPE, layers=layers, kind=kind, objective=objective, seed=0
            )
            return await choose(bench)

    return asyncio.run(chosen())


def _item(task: str, number: int) -> Item:
    return Item(task, "line", f"{number}: is it? ", None, ("p", "n"), "p", "is it")


def tuned(**changes: Any) -> Callable[[Bench], Any]:
    options: dict[str, Any] = {"gammas": (0.5, 2, 3, 4), "probe": 2, "top_share": 0.6, "level": 0.9}
    wanted = zerotuning.ZeroTuningOptions(**(options | changes))
    return lambda bench: zerotuning.choose(bench, wanted)


def test_zerotuning_takes_the_best_heads_of_the_dominant_type(tmp_path: Path) -> None:
    choice: Choice = run(tmp_path, tuned())
    assert choice.account["dominant"] == "up"
    assert (choice.account["up_effective"], choice.account["down_effective"]) == (3, 1)
    # Two of three: the third alone gains least. Gamma 2 and 3 are equal, and 2 changes less.
    assert choice.parameters == {"gamma": 2.0, "heads": {"0": [0, 1]}}
    assert set(choice.account["grid"]) == {"plain", "2", "3", "4"}


def test_zerotuning_without_labels_looks_for_the_least_entropy(tmp_path: Path) -> None:
    choice: Choice = run(tmp_path, tuned(), "entropy", "entropy")
    assert choice.account["grid"]["plain"] < 0
    assert choice.parameters["heads"]


def test_zerotuning_says_when_no_head_helps(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no head alone"):
        run(tmp_path, tuned(), answers=lambda *_: two_way(0.5))


def test_emphasis_takes_what_is_best_on_every_task(tmp_path: Path) -> None:
    options = emphasis.EmphasisOptions(alpha=0.1, top_share=0.3, level=0.9)
    choice: Choice = run(
        tmp_path, lambda bench: emphasis.choose(bench, options), tasks=("one", "two")
    )
    assert choice.parameters == {"alpha": 0.1, "heads": {"0": [0], "1": [0]}}
    assert set(choice.account["sweeps"]) == {"one", "two"}


def kept(
    method: str, parameters: dict[str, Any], level: float, maps: list[Sweep] | None = None
) -> Callable[[Bench], Any]:
    mapped = [].append if maps is None else maps.append
    return lambda bench: kept_heads.choose(bench, method, parameters, level, mapped)


def test_heads_are_kept_when_they_help_beyond_the_noise(tmp_path: Path) -> None:
    maps: list[Sweep] = []
    choice: Choice = run(tmp_path, kept("head_gain", {"gain": 2.0}, 0.9, maps))
    assert choice.parameters == {"gain": 2.0, "heads": {"0": [0, 1], "1": [2]}}
    with pytest.raises(CalibrationError, match="layer  1:"):
        run(tmp_path, kept("head_gain", {"gain": 4.0}, 0.9999, maps))
    assert [sweep.gains.shape for sweep in maps] == [SHAPE, SHAPE]


def test_a_map_is_written_as_numbers_and_as_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maps: list[Sweep] = []
    run(tmp_path, kept("head_gain", {"gain": 2.0}, 0.9, maps), layers=[1])
    write_map(tmp_path / "out", "mine", "likelihood", {"method": "head_gain"}, maps[0])
    written = json.loads((tmp_path / "out" / "mine.map.json").read_text())
    assert (written["method"], written["objective"]) == ("head_gain", "likelihood")
    assert written["layers"] == [1]
    assert written["gains"] == [[round(gain, 5) for gain in maps[0].gains[0]]]
    assert len(written["lower"][0]) == SHAPE[1]
    picture = ElementTree.fromstring((tmp_path / "out" / "mine.map.svg").read_text())
    titles = [title.text for title in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == [f"1:{head}: {gain:+.5f}" for head, gain in enumerate(maps[0].gains[0])]
    assert "mine.map.svg" in capsys.readouterr().out
    assert "NaN" not in gain_map([0], np.zeros((1, 2)), "accuracy")


def test_only_the_heads_of_the_layers_that_were_asked_for_are_tried(tmp_path: Path) -> None:
    asked: list[str] = []

    def answers(prompt: list[int], edits: list[dict[str, Any]]) -> dict[int, float]:
        asked.extend(layer for edit in edits for layer in edit["heads"])
        return rule(prompt, edits)

    choice: Choice = run(
        tmp_path,
        kept("head_gain", {"gain": 2.0}, 0.9),
        answers=answers,
        layers=[1],
    )
    assert set(asked) == {"1"}
    assert choice.parameters == {"gain": 2.0, "heads": {"1": [2]}}
    assert len(choice.account["sweep"]["gains"]) == 1
    (compared,) = choice.compared.values()
    assert compared == {"method": "head_gain", "gain": 2.0, "layers": [1]}
    options = emphasis.EmphasisOptions(alpha=0.1, top_share=0.3, level=0.9)
    (best,) = (
        run(tmp_path, lambda bench: emphasis.choose(bench, options), layers=[1])
        .parameters["heads"]
        .items()
    )
    assert best == ("1", [0])
    with pytest.raises(CalibrationError, match="no layer 2; the model has 0 to 1"):
        run(tmp_path, tuned(), layers=[1, 2])


def test_held_out_items_are_told_before_and_after(tmp_path: Path) -> None:
    async def evaluated(bench: Bench) -> Any:
        chosen = {"method": "zerotuning", "gamma": 2.0, "heads": {"0": [0, 1]}}
        everywhere = {"all heads": {"method": "zerotuning", "gamma": 2.0}}
        return await evaluate(bench.runner, bench.tasks, ["choices"], chosen, everywhere, 0)

    found = run(tmp_path, evaluated)
    settings = found["t"]["settings"]
    assert list(settings) == ["none", "profile", "all heads"]
    assert settings["none"]["accuracy"]["difference"] == [0, 0, 0]
    mean, low, high = settings["profile"]["likelihood"]["difference"]
    assert 0 < low < mean < high
    assert settings["profile"]["accuracy"]["mended"] > 5 and settings["none"]["accuracy"]["p"] == 1
    assert f"| {settings['profile']['accuracy']['mended']}, 0 | " in tables(found)
    assert warnings(found, "likelihood") == []


def test_the_entropy_is_measured_where_the_labels_say_nothing_of_it(tmp_path: Path) -> None:
    """By its text an answer is right or wrong, and no more."""

    async def evaluated(bench: Bench) -> Any:
        chosen = {"method": "zerotuning", "gamma": 2.0, "heads": {"1": [1]}}
        return await evaluate(bench.runner, bench.tasks, ["entropy", "text"], chosen, {}, 0)

    found = run(tmp_path, evaluated)
    row = found["t"]["settings"]["profile"]
    assert set(row) == {"accuracy", "entropy"}
    assert warnings(found, "entropy") != []


@pytest.mark.parametrize(
    ("mended", "spoiled", "words"),
    [
        (0, 2, ["t: the accuracy is worse with the profile than without"]),
        (5, 0, ["t: the accuracy gains nothing beyond the noise"]),
        (9, 0, []),
    ],
)
def test_a_profile_that_does_not_help_says_so(
    tmp_path: Path, mended: int, spoiled: int, words: list[str]
) -> None:
    def answers(prompt: list[int], edits: list[dict[str, Any]]) -> dict[int, float]:
        number = int(bytes(prompt).decode().split(":")[0])
        right = number < 20
        changed = number < spoiled or 20 <= number < 20 + mended
        return two_way(0.9 if right != (bool(edits) and changed) else 0.1)

    async def evaluated(bench: Bench) -> Any:
        return await evaluate(bench.runner, bench.tasks, ["choices"], {"method": "act"}, {}, 0)

    found = run(tmp_path, evaluated, answers=answers)
    assert warnings(found, "accuracy") == words


def test_intervals_hold_what_they_say() -> None:
    values = np.random.default_rng(1).normal(0.5, 1, size=400)
    found = Ratio.mean(values).interval(seed=0)
    assert found.low < found.mean < found.high
    assert abs((found.high - found.low) / 2 - 1.96 / 20) < 0.02
    assert Ratio.mean(np.zeros(9)).interval(0).rounded() == [0, 0, 0]
    bounds = lower_bounds(np.stack([values, values * 0, -values]), 0.95, 0)
    assert abs(bounds[0] - (values.mean() - 1.645 / 20)) < 0.02
    assert bounds[1] == 0 and bounds[2] < -0.4


def test_what_rounding_adds_to_every_item_keeps_no_head(tmp_path: Path) -> None:
    def rounded(_: list[int], edits: list[dict[str, Any]]) -> dict[int, float]:
        return {
            token: value + 1e-6 * bool(edits) * (token == ord("p"))
            for token, value in two_way(0.5).items()
        }

    with pytest.raises(CalibrationError, match="no head alone"):
        run(tmp_path, kept("act", {}, 0.9), answers=rounded)
    with pytest.raises(CalibrationError, match="no head alone"):
        run(tmp_path, tuned(), answers=rounded)


@pytest.mark.parametrize(
    ("mended", "level", "helps"),
    [(1, 0.9, False), (2, 0.9, False), (3, 0.9, False), (3, 0.85, True), (4, 0.9, True)],
)
def test_by_accuracy_a_head_is_kept_when_chance_would_not_mend_as_many(
    tmp_path: Path, mended: int, level: float, helps: bool
) -> None:
    def answers(prompt: list[int], edits: list[dict[str, Any]]) -> dict[int, float]:
        number = int(bytes(prompt).decode().split(":")[0])
        return two_way(0.9 if edits and number < mended else 0.1)

    choose = kept("head_gain", {"gain": 2.0}, level)
    if helps:
        choice = run(tmp_path, choose, objective="accuracy", answers=answers)
        assert "sign test" in choice.account["rule"]
        return
    with pytest.raises(CalibrationError, match="no head alone"):
        run(tmp_path, choose, objective="accuracy", answers=answers)


@pytest.mark.parametrize(
    ("mended", "spoiled", "either", "better"),
    [
        (0, 0, 1, 1),
        (1, 0, 1, 0.5),
        (2, 0, 0.5, 0.25),
        (3, 0, 0.25, 0.125),
        (5, 0, 0.0625, 0.03125),
        (0, 5, 0.0625, 1),
        (9, 3, 0.14599609375, 0.072998046875),
    ],
)
def test_answers_that_changed_sides_are_tested_exactly(
    mended: int, spoiled: int, either: float, better: float
) -> None:
    turned = Turned.of(np.array([1.0] * mended + [-1.0] * spoiled + [0.0] * 7))
    assert turned == Turned(mended, spoiled)
    assert (turned.p_two_sided(), turned.p_better()) == (either, better)
