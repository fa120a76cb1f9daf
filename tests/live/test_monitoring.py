"""Every query of the dashboard and of the alerts asks for what a server's scrape has."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import yaml
from live_server import LiveServer
from prometheus_client.parser import text_string_to_metric_families

from heed_server.measuring.servers import free_port

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


def traffic(server: LiveServer) -> None:
    """Requests of each kind that a query speaks of."""
    prompt = server.prompt(300)
    for edits in ([{"method": "zerotuning", "gamma": 2}], [{"method": "snapkv", "keep": 0.2}]):
        server.fresh(prompt, edits, max_tokens=100)
    server.post("/v1/completions", {"prompt": "a", "interventions": [{"method": "nothing"}]})


@pytest.fixture(scope="module")
def scrape(server: LiveServer) -> Scrape:
    """After such requests, and a poll of the workers."""
    traffic(server)
    prompt = server.prompt(300)
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
def test_promtool_takes_a_scrape(server: LiveServer) -> None:
    text = server.client.get("/metrics").text
    ours = "".join(line + "\n" for line in text.splitlines() if "heed_" in line)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=ours, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def prometheus(server: LiveServer, tmp_path: Path) -> Iterator[httpx.Client]:
    """A Prometheus that scrapes the server, and evaluates the alerts, every second."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(DEPLOY / "prometheus" / "heed-alerts.yml")],
        "scrape_configs": [
            {
                "job_name": "heed",
                "scrape_timeout": "1s",
                "static_configs": [{"targets": [server.url.removeprefix("http://")]}],
            }
        ],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = ["prometheus", f"--config.file={tmp_path / 'prometheus.yml'}"]
    command += [
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=60) as client:
            yield client
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_a_prometheus_answers_every_panel_with_data(
    server: LiveServer, scrape: Scrape, prometheus: httpx.Client
) -> None:
    waiting = {
        f"{panel['title']}, {target['refId']}": target["expr"]
        .replace("$__rate_interval", "30s")
        .replace("$instance", ".*")
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    }
    deadline = time.monotonic() + 120
    while waiting and time.monotonic() < deadline:
        traffic(server)
        for name, query in list(waiting.items()):
            with suppress(httpx.TransportError):
                answer = prometheus.get("/query", params={"query": query}).json()
                assert answer["status"] == "success", f"{name}: {answer}"
                values = [float(row["value"][1]) for row in answer["data"]["result"]]
                if any(math.isfinite(value) for value in values):
                    del waiting[name]
    assert not waiting
    offered = prometheus.get("/label/instance/values", params={"match[]": "heed_build_info"}).json()
    assert offered["data"] == [server.url.removeprefix("http://")], "what the menu of servers has"
    (group,) = prometheus.get("/rules").json()["data"]["groups"]
    assert [rule["name"] for rule in group["rules"]] == [
        rule["alert"] for rule in ALERTS["groups"][0]["rules"]
    ]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}, group
