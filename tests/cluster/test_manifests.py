"""Manifests are what the tools that read them accept, and close what should be closed."""

import json
import shlex
import subprocess
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

import cluster
from tests.commands import parsed

MANIFESTS = Path(cluster.__file__).parent / "manifests"
YAML = {path.name: list(yaml.safe_load_all(path.read_text())) for path in MANIFESTS.glob("*.yaml")}


def objects(node):
    """All objects of a YAML file, whatever they lie in."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from objects(child)


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kuberay_makes_a_cluster_with_a_token(name):
    (document,) = YAML[name]
    assert document["apiVersion"] == "ray.io/v1"
    spec = document["spec"].get("rayClusterSpec", document["spec"])
    assert spec["rayVersion"] == ray.__version__
    assert spec["authOptions"] == {"mode": "token"}
    head, workers = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert all(1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] for group in workers)
    assert all(isinstance(value, str) for group in [head, *workers] for value in group["rayStartParams"].values())


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml", "mlflow.yaml"])
def test_pods_have_the_memory_and_the_volumes_that_they_name(name):
    pods = [found["template"]["spec"] for found in objects(YAML[name]) if "template" in found]
    claims = {o["metadata"]["name"] for o in objects(YAML[name]) if "accessModes" in o.get("spec", ())}
    assert pods
    for pod in pods:
        (container,) = pod["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        assert volumes <= mounted <= volumes | claims
        assert mounted
        if name != "mlflow.yaml":
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]


def test_the_rayjob_runs_a_command_that_exists():
    (document,) = YAML["rayjob.yaml"]
    program, command, *arguments = shlex.split(document["spec"]["entrypoint"])
    assert program == "tutti"
    given = parsed(command, *arguments)
    assert given["systems"] == ("s2",)
    assert given["address"] == "auto"


def test_the_cluster_launcher_is_valid_to_ray_and_its_dashboard_is_not_seen_from_outside():
    (document,) = YAML["launcher.yaml"]
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(document, schema)
    assert "--dashboard-host=127.0.0.1" in document["head_start_ray_commands"][-1]
    assert document["max_workers"] == len(document["provider"]["worker_ips"])
    assert "--env=RAY_AUTH_MODE=token" in document["docker"]["run_options"]


def test_services_and_policies_are_of_pods_that_exist_and_open_nothing_else():
    deployed = {d["metadata"]["name"]: d["spec"] for d in YAML["mlflow.yaml"] if "template" in d.get("spec", {})}
    labels = {name: spec["template"]["metadata"]["labels"] for name, spec in deployed.items()}
    assert {name: spec["selector"]["matchLabels"] for name, spec in deployed.items()} == labels
    services = {d["metadata"]["name"]: d["spec"] for d in YAML["mlflow.yaml"] if d["kind"] == "Service"}
    assert {name: spec["selector"] for name, spec in services.items()} == labels
    assert not any("type" in spec for spec in services.values())  # no NodePort, no LoadBalancer
    of_ray, of_database = (document["spec"] for document in YAML["networkpolicy.yaml"])
    assert of_database["podSelector"]["matchLabels"] == labels["mlflow-db"]
    assert of_database["ingress"] == [{"from": [{"podSelector": {"matchLabels": labels["mlflow"]}}]}]
    pods_of_ray = {"matchExpressions": [{"key": "ray.io/node-type", "operator": "Exists"}]}
    assert of_ray["podSelector"] == pods_of_ray
    (opened,) = of_ray["ingress"]
    assert {"podSelector": pods_of_ray} in opened["from"]
    assert all(of["policyTypes"] == ["Ingress"] for of in (of_ray, of_database))


def test_no_secret_is_written_down():
    variables = [found for found in objects(list(YAML.values())) if found.keys() & {"value", "valueFrom"}]
    secret = [v for v in variables if any(word in v["name"] for word in ("PASSWORD", "TOKEN", "KEY", "USERNAME"))]
    assert len(secret) >= 4
    assert all("secretKeyRef" in variable["valueFrom"] for variable in secret)


def test_the_slurm_script_is_one_and_makes_a_token():
    script = MANIFESTS / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    assert "export RAY_AUTH_MODE=token" in script.read_text()
    assert "RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')" in script.read_text()


def test_the_image_has_every_package():
    recipe = (MANIFESTS / "Dockerfile").read_text()
    root = MANIFESTS.parents[1]
    for package in (path.parent.name for path in root.glob("*/__init__.py") if path.parent.name != "tests"):
        assert f"COPY {package} {package}\n" in recipe
