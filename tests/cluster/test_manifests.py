"""Manifests are what the tools that read them accept, and close what should be closed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

import cluster
from tests.commands import parsed

MANIFESTS = Path(cluster.__file__).parent / "manifests"
KINDS = {
    "apiVersion": "ray.io/v1",
    "RayCluster": {"rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions"}
    | {"headGroupSpec", "workerGroupSpecs"},
    "RayJob": {"entrypoint", "submissionMode", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"}
    | {"rayClusterSpec"},
    "head": {"rayStartParams", "template"},
    "worker": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}


def documents(name):
    return list(yaml.safe_load_all((MANIFESTS / name).read_text()))


def ray_cluster(name):
    (document,) = documents(name)
    assert document["apiVersion"] == KINDS["apiVersion"]
    assert set(document["spec"]) <= KINDS[document["kind"]]
    return document["spec"].get("rayClusterSpec", document["spec"])


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kuberay(name):
    spec = ray_cluster(name)
    assert set(spec) <= KINDS["RayCluster"]
    assert spec["rayVersion"] == ray.__version__
    assert spec["authOptions"] == {"mode": "token"}
    head, workers = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert set(head) == KINDS["head"]
    for worker in workers:
        assert set(worker) == KINDS["worker"]
        assert 1 <= worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]
    for group in [head, *workers]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
        volumes = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_the_rayjob_runs_a_command_that_exists():
    (document,) = documents("rayjob.yaml")
    program, command, *arguments = shlex.split(document["spec"]["entrypoint"])
    assert program == "tutti"
    given = parsed(command, *arguments)
    assert given["systems"] == ("s2",)
    assert given["address"] == "auto"


def test_the_cluster_launcher_is_valid_to_ray():
    (document,) = documents("launcher.yaml")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(document, schema)
    assert "--dashboard-host=127.0.0.1" in document["head_start_ray_commands"][-1]
    assert document["max_workers"] == len(document["provider"]["worker_ips"])


@pytest.mark.parametrize("name", ["mlflow.yaml", "networkpolicy.yaml"])
def test_kubernetes_objects_belong_together(name):
    found = documents(name)
    assert all({"apiVersion", "kind", "metadata"} <= set(document) for document in found)
    deployed = [d for d in found if d["kind"] in ("Deployment", "StatefulSet")]
    for document in deployed:
        labels = document["spec"]["template"]["metadata"]["labels"]
        assert document["spec"]["selector"]["matchLabels"].items() <= labels.items()
    labels = [d["spec"]["template"]["metadata"]["labels"] for d in deployed]
    for service in (d for d in found if d["kind"] == "Service"):
        assert service["spec"]["selector"] in labels
        assert "type" not in service["spec"]  # no NodePort, no LoadBalancer


@pytest.mark.parametrize("path", sorted(MANIFESTS.iterdir()), ids=lambda path: path.name)
def test_no_secret_is_written_down(path):
    for line in path.read_text().splitlines():
        if "PASSWORD" in line and "value:" in line:
            pytest.fail(line)


def test_the_image_has_every_package():
    recipe = (MANIFESTS / "Dockerfile").read_text()
    root = MANIFESTS.parents[1]
    for package in (path.parent.name for path in root.glob("*/__init__.py") if path.parent.name != "tests"):
        assert f"COPY {package} {package}\n" in recipe
