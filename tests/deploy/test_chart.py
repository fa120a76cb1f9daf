"""The Helm chart, rendered by Helm itself and held against the schemas of Kubernetes where both are at hand.

Helm and the schemas come from `tests/deploy/requirements.txt`; without them only the values are checked.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from heed_interventions import parse
from heed_interventions.policy import parse_policy
from heed_server.version import __version__

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "heed"
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())

FULL: dict[str, Any] = {
    "model": "Qwen/Qwen3-8B",
    "args": ["--max-model-len", "32768"],
    "replicaCount": 3,
    "image": {"repository": "registry.example/heed", "tag": "1.2"},
    "imagePullSecrets": [{"name": "registry"}],
    "interventions": {
        "allowPrivileged": True,
        "policy": {"methods": {"locore": {"beta": {"maximum": 0.3}}}, "protect_prefix_tokens": 9},
        "defaults": [{"method": "locore"}],
        "profiles": {"existingClaim": "profiles"},
    },
    "apiKey": {"existingSecret": "heed-key"},
    "huggingFaceToken": {"existingSecret": "hub"},
    "env": [{"name": "VLLM_LOGGING_LEVEL", "value": "INFO"}],
    "resources": {"limits": {"nvidia.com/gpu": 1}, "requests": {"cpu": "4", "memory": "16Gi"}},
    "cache": {"existingClaim": "models"},
    "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "podDisruptionBudget": {"enabled": True},
    "nodeSelector": {"gpu": "yes"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "topologySpreadConstraints": [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
        }
    ],
    "priorityClassName": "serving",
    "runtimeClassName": "nvidia",
    "podAnnotations": {"note": "x"},
    "extraVolumes": [{"name": "more", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
    "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "extra"}}],
}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """As Helm puts values over those of the chart: objects by key, all else whole."""
    result = copy.deepcopy(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = (
            merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return result


def test_the_charts_own_values_fit_its_schema() -> None:
    jsonschema.validate(VALUES, SCHEMA)
    jsonschema.validate(merged(VALUES, FULL), SCHEMA)


def test_every_value_is_in_the_schema() -> None:
    assert set(SCHEMA["properties"]) - {"global"} == set(VALUES)


@pytest.mark.parametrize(
    "wrong",
    [
        {"replicas": 2},
        {"image": {"repository": ""}},
        {"interventions": {"policy": {"method": {}}}},
        {"interventions": {"policy": {"methods": {"locore": {"beta": {"max": 1}}}}}},
        {"autoscaling": {"kind": "vpa"}},
        {"apiKey": {"value": "secret"}},
        {"sharedMemory": "2G"},
        {"service": {"port": 0}},
    ],
    ids=str,
)
def test_a_value_that_means_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(merged(VALUES, wrong), SCHEMA)


def test_the_chart_is_of_this_version_of_heed() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__
    stack = yaml.safe_load((ROOT / "deploy" / "production-stack.yaml").read_text())
    (model,) = stack["servingEngineSpec"]["modelSpec"]
    assert model["tag"] == __version__
    assert {"name": "VLLM_PLUGINS", "value": "heed"} in model["env"]


KEDA = {"autoscaling": {"kind": "keda", "keda": {"prometheusAddress": "http://prometheus:9090"}}}
NOT_KUBERNETES_OWN = {"PodMonitor", "ScaledObject"}
"""Kinds that an operator brings along; Kubernetes has no schema for them."""


def all_rendered(over: dict[str, Any], name: str = "test") -> list[dict[str, Any]]:
    """The chart's objects, as `helm template` makes them for a release of that name."""
    helm = pytest.importorskip("helm_python", reason="Helm is not at hand")
    files = helm.Chart.load(CHART).render(over, name=name, namespace="serving")
    manifests = [text for file, text in files.items() if file.endswith(".yaml")]
    return [each for text in manifests for each in yaml.safe_load_all(text) if each]


def rendered(over: dict[str, Any], name: str = "test") -> dict[str, dict[str, Any]]:
    """The same by kind, where the values ask for one object of each."""
    objects = all_rendered(over, name)
    kinds = {each["kind"]: each for each in objects}
    assert len(kinds) == len(objects), "two objects of a kind"
    return kinds


def container(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (only,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = only
    return found


@pytest.mark.parametrize(
    "over",
    [{}, FULL, FULL | KEDA, {"autoscaling": {"kind": "hpa"}}],
    ids=["bare", "full", "keda", "hpa"],
)
def test_what_is_rendered_is_what_kubernetes_takes(over: dict[str, Any]) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="no schemas of Kubernetes")
    objects = all_rendered(over)
    assert {"Deployment", "Service", "ServiceAccount"} <= {each["kind"] for each in objects}
    for each in objects:
        if each["kind"] not in NOT_KUBERNETES_OWN:
            kubernetes.validate(each, "1.31", strict=True)


def test_extra_objects_stand_beside_the_charts_own_of_their_kind() -> None:
    names = [each["metadata"]["name"] for each in all_rendered(FULL) if each["kind"] == "ConfigMap"]
    assert sorted(names) == ["extra", "test-heed"]


def test_helm_finds_nothing_wrong() -> None:
    helm = pytest.importorskip("helm_python", reason="Helm is not at hand")
    report = helm.lint(CHART, FULL, strict=True)
    assert report["errors"] == []
    assert [each for each in report["messages"] if each["severity"] > 1] == []


def test_helm_refuses_what_the_schema_refuses() -> None:
    helm = pytest.importorskip("helm_python", reason="Helm is not at hand")
    helm.Chart.load(CHART).validate_schema(FULL)
    with pytest.raises(helm.HelmValuesError, match="replicas"):
        helm.Chart.load(CHART).validate_schema({"replicas": 2})


def test_bare_values_serve_the_bundled_model_and_ask_for_nothing_that_is_not_there() -> None:
    objects = rendered({})
    assert set(objects) == {"Deployment", "Service", "ServiceAccount"}
    heed = container(objects)
    assert heed["image"] == f"heed:{__version__}"
    assert heed["args"][:2] == ["--host", "0.0.0.0"] and not heed["env"]
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    assert heed["securityContext"]["readOnlyRootFilesystem"]


def test_the_selector_of_everything_matches_the_pods() -> None:
    objects = rendered(FULL | {"extraObjects": []})
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    selectors = [
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["PodMonitor"]["spec"]["selector"]["matchLabels"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector and selector.items() <= labels
    ports = {port["name"] for port in container(objects)["ports"]}
    assert objects["Service"]["spec"]["ports"][0]["targetPort"] in ports
    assert objects["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["port"] in ports


def test_settings_become_files_that_heed_reads() -> None:
    objects = rendered(FULL | {"extraObjects": []})
    files = objects["ConfigMap"]["data"]
    policy = parse_policy(json.loads(files["policy.json"]))
    assert policy.protect_prefix_tokens == 9 and policy.methods is not None
    assert parse(json.loads(files["defaults.json"]))[0].method == "locore"
    arguments = container(objects)["args"]
    mounts = {each["mountPath"] for each in container(objects)["volumeMounts"]}
    for flag in ("--intervention-policy", "--default-interventions", "--profiles"):
        path = arguments[arguments.index(flag) + 1]
        assert any(path.startswith(mount) for mount in mounts)
    assert "--allow-privileged-interventions" in arguments


def test_a_change_of_settings_restarts_the_pods() -> None:
    def checksum(over: dict[str, Any]) -> str:
        template = rendered(over)["Deployment"]["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum({}) != checksum({"interventions": {"policy": {"protect_prefix_tokens": 1}}})


def test_secrets_are_references() -> None:
    environment = {
        each["name"]: each for each in container(rendered(FULL | {"extraObjects": []}))["env"]
    }
    key = environment["VLLM_API_KEY"]["valueFrom"]["secretKeyRef"]
    assert key == {"name": "heed-key", "key": "api-key"}
    assert "valueFrom" in environment["HF_TOKEN"]


@pytest.mark.parametrize(("key", "path"), [("", "/v1/models"), ("heed-key", "/health")])
def test_probes_ask_what_they_may(key: str, path: str) -> None:
    heed = container(rendered({"apiKey": {"existingSecret": key}}))
    assert heed["startupProbe"]["httpGet"]["path"] == path
    assert heed["readinessProbe"]["httpGet"]["path"] == path
    assert heed["livenessProbe"]["httpGet"]["path"] == "/health"


@pytest.mark.parametrize("before", [0, 7])
def test_a_pod_is_not_killed_while_it_drains(before: int) -> None:
    objects = rendered({"drainSeconds": 40, "preStopSeconds": before})
    heed = container(objects)
    assert heed["args"][heed["args"].index("--shutdown-timeout") + 1] == "40"
    grace = objects["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace == before + 40 + 15
    sleep = {"preStop": {"exec": {"command": ["sleep", "7"]}}}
    assert heed.get("lifecycle") == (sleep if before else None)


@pytest.mark.parametrize(
    ("kind", "object_kind"), [("hpa", "HorizontalPodAutoscaler"), ("keda", "ScaledObject")]
)
def test_an_autoscaler_takes_the_place_of_replicas(kind: str, object_kind: str) -> None:
    objects = rendered(merged(KEDA, {"autoscaling": {"kind": kind}}))
    assert "replicas" not in objects["Deployment"]["spec"]
    target = objects[object_kind]["spec"]["scaleTargetRef"]["name"]
    assert target == objects["Deployment"]["metadata"]["name"]


def test_keda_asks_for_the_requests_that_wait_in_these_pods() -> None:
    (trigger,) = rendered(KEDA)["ScaledObject"]["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    pods = "test-heed-[a-z0-9]+-[a-z0-9]{5}"
    assert query == f'sum(vllm:num_requests_waiting{{namespace="serving",pod=~"{pods}"}})'


@pytest.mark.parametrize("release", ["heed", "heed-canary", "a" * 53])
def test_keda_counts_the_pods_of_its_own_release_alone(release: str) -> None:
    objects = rendered(KEDA, release)
    (trigger,) = objects["ScaledObject"]["spec"]["triggers"]
    pods = re.search(r'pod=~"([^"]*)"', trigger["metadata"]["query"])
    assert pods is not None
    deployment = objects["Deployment"]["metadata"]["name"]
    # Prometheus matches whole names; Kubernetes cuts what stands before the last five characters to 58.
    assert re.fullmatch(pods[1], f"{deployment}-5d4f8c7b9f-"[:58] + "x7k2p")
    for other in ("-canary", "-2"):
        assert not re.fullmatch(pods[1], f"{deployment}{other}-5d4f8c7b9f-x7k2p")
