"""Every query of the dashboard and of the alerts asks for what a server's scrape has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from live_server import LiveServer
from prometheus_client.parser import text_string_to_metric_families

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "heed.json").read_text())
ALERTS = yaml.safe_load((DEPLOY / "prometheus" / "heed-alerts.yml").read_text())
OF_TARGETS = {"instance", "job"}
"""Labels that Prometheus adds."""

Scrape = dict[str, set[frozenset[tuple[str, str]]]]
"""By sample name the sets of labels that it was seen with."""


def queries() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield f"{panel['title']}, {target['refId']}", target["expr"]
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


@pytest.fixture(scope="module")
def scrape(server: LiveServer) -> Scrape:
    """After requests of each kind that a query speaks of, and a poll of the workers."""
    prompt = server.prompt(300)
    for edits in ([{"method": "zerotuning", "gamma": 2}], [{"method": "snapkv", "keep": 0.2}]):
        server.fresh(prompt, edits, max_tokens=100)
    server.post("/v1/completions", {"prompt": "a", "interventions": [{"method": "nothing"}]})
    deadline = time.monotonic() + 30
    while not server.metric("heed_sink_mass_count") and time.monotonic() < deadline:
        server.fresh(prompt, [{"method": "zerotuning", "gamma": 2}], max_tokens=50)
    found: Scrape = {}
    for family in text_string_to_metric_families(server.client.get("/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).add(frozenset(sample.labels.items()))
    return found


@pytest.mark.parametrize(("name", "query"), list(queries()), ids=lambda value: value[:40])
def test_a_query_asks_for_names_and_labels_that_exist(
    scrape: Scrape, name: str, query: str
) -> None:
    asked = re.findall(r"\b((?:heed_|vllm:)\w+)(?:\{([^}]*)\})?", query)
    assert asked, query
    known: set[str] = set(OF_TARGETS)
    for metric, matchers in asked:
        assert metric in scrape, f"{name}: no sample {metric}"
        labels = {label for seen in scrape[metric] for label, _ in seen}
        known |= labels
        for label, sign, value in re.findall(r'(\w+)(=~|=)"([^"]*)"', matchers):
            assert label in labels | OF_TARGETS, f"{name}: {metric} has no label {label}"
            if sign == "=" and label != "backend":
                assert any((label, value) in seen for seen in scrape[metric]), f"{name}: {value}"
    for clause in re.findall(r"\bby \(([^)]*)\)", query):
        assert set(re.split(r",\s*", clause)) <= known, f"{name}: {clause}"


def test_panels_are_apart_and_say_what_they_show() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert all(panel.get("description") for panel in DASHBOARD["panels"] if "targets" in panel)


def test_labels_are_out_of_bounded_sets(scrape: Scrape) -> None:
    allowed = {"method", "outcome", "reason", "phase", "path", "le", "version", "vllm", "backend"}
    for name, seen in scrape.items():
        if name.startswith("heed_"):
            assert {label for labels in seen for label, _ in labels} <= allowed, name
            assert len(seen) < 200, name


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_takes_the_rules_and_a_scrape(server: LiveServer) -> None:
    rules = str(DEPLOY / "prometheus" / "heed-alerts.yml")
    subprocess.run(["promtool", "check", "rules", rules], check=True, capture_output=True)
    text = server.client.get("/metrics").text
    ours = "".join(line + "\n" for line in text.splitlines() if "heed_" in line)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=ours, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
