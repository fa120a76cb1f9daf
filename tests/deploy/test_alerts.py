"""Each alert fires on what it is for, and on nothing near it, as Prometheus' own `promtool` evaluates the rules."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "heed-alerts.yml"
ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]
}
WHERE = 'instance="here"'
REFUSED = f'heed_rejections_total{{{WHERE},reason="field"}}'
ANSWERED = f'vllm:request_success_total{{{WHERE},finished_reason="stop"}}'
TOKENS = f'vllm:prompt_tokens_total{{{WHERE},engine="0"}}'
BUILD = f'heed_build_info{{{WHERE},backend="%s"}}'
USE = f'vllm:kv_cache_usage_perc{{{WHERE},engine="0"}}'
PREEMPTED = f'vllm:num_preemptions_total{{{WHERE},engine="0"}}'

Series = dict[str, str]
FIRES: dict[str, tuple[Series, list[Series]]] = {
    "HeedRefusalsRising": (
        {REFUSED: "0+20x30", ANSWERED: "0+60x30"},
        [
            {REFUSED: "0+10x30", ANSWERED: "0+60x30"},
            {REFUSED: "0+1x30", ANSWERED: "0+1x30"},
            {REFUSED: "0+20x8 160x22", ANSWERED: "0+60x30"},
        ],
    ),
    "HeedServerRestarted": (
        {TOKENS: "0+1000x12 _x3 0+1000x15"},
        [{TOKENS: "0+1000x30"}, {TOKENS: "0x30"}],
    ),
    "HeedCannotEdit": ({BUILD % "none": "1x30"}, [{BUILD % "cpu": "1x30"}]),
    "HeedCachePressure": (
        {USE: "0.99x30", PREEMPTED: "0+2x30"},
        [{USE: "0.99x30", PREEMPTED: "5x30"}, {USE: "0.9x30", PREEMPTED: "0+2x30"}],
    ),
}
"""By alert what makes it fire, one value a minute for half an hour, and what does not."""


def promtool(*arguments: str) -> str:
    """What it prints; it has to be satisfied."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def case(name: str, series: Series, fires: bool) -> dict[str, Any]:
    rule = ALERTS[name]
    labels = {"instance": "here", **rule["labels"]}
    if name == "HeedServerRestarted":
        labels["engine"] = "0"
    if name == "HeedCannotEdit":
        labels["backend"] = "none"
    texts = {
        key: text.replace("{{ $labels.instance }}", "here")
        for key, text in rule["annotations"].items()
    }
    expected = [{"exp_labels": labels, "exp_annotations": texts}] if fires else []
    return {
        "interval": "1m",
        "input_series": [{"series": each, "values": values} for each, values in series.items()],
        "alert_rule_test": [{"eval_time": "20m", "alertname": name, "exp_alerts": expected}],
    }


def test_every_alert_has_a_case() -> None:
    assert list(FIRES) == list(ALERTS)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_takes_the_rules() -> None:
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", str(RULES))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_fires_on_what_it_is_for_alone(name: str, tmp_path: Path) -> None:
    loud, quiet = FIRES[name]
    cases = [case(name, loud, True), *(case(name, each, False) for each in quiet)]
    path = tmp_path / "cases.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": cases}))
    promtool("test", "rules", str(path))
