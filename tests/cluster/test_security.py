"""Nothing from outside is executed (docs/security.md), and manifests close what should be closed."""

import ast
import json
import pickle
import shlex
import subprocess
from pathlib import Path

import jsonschema
import pytest
import ray
import torch
import yaml

from branches.beats.checkpoint import load_beats
from orchestrator.system import load_system
from scoring.errors import InputError
from tests.commands import parsed

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "cluster" / "manifests"
YAML = {path.name: list(yaml.safe_load_all(path.read_text())) for path in MANIFESTS.glob("*.yaml")}
PACKAGES = ("branches", "scoring", "fusion", "cluster", "orchestrator")
FORBIDDEN = {"pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal", "eval", "exec", "os.system"}
FORBIDDEN |= {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader"}


def uses(tree):
    """What a file imports and calls; a call with what would make it execute what it is given."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)
        elif isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            yield name
            if name == "torch.load" and given.get("weights_only") != "True":
                yield "pickle"
            if given.get("allow_pickle", "False") != "False" or "shell" in given:
                yield "exec"


class Trap:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_nothing_unpickles_or_executes_and_a_file_that_would_is_refused(tmp_path):
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        assert not FORBIDDEN & set(uses(ast.parse(path.read_text()))), path
    sprung = tmp_path / "sprung"
    torch.save({"cfg": {}, "model": Trap(sprung)}, tmp_path / "trap.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Trap(sprung)))
    (tmp_path / "trap.yaml").write_text(f"name: !!python/object/apply:pathlib.Path.touch [{sprung}]\n")
    for read, name in ((load_beats, "trap.pt"), (load_beats, "plain.pt"), (load_system, "trap.yaml")):
        with pytest.raises(InputError):
            read(str(tmp_path / name))
    assert not sprung.exists()


def objects(node):
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from objects(child)


def test_kuberay_has_a_token_memory_and_a_command_that_exists_and_services_and_policies_open_nothing():
    for name in ("raycluster.yaml", "rayjob.yaml"):
        (document,) = YAML[name]
        spec = document["spec"].get("rayClusterSpec", document["spec"])
        assert (document["apiVersion"], spec["rayVersion"]) == ("ray.io/v1", ray.__version__)
        assert spec["authOptions"] == {"mode": "token"}
        head, workers = spec["headGroupSpec"], spec["workerGroupSpecs"]
        assert all(1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] for group in workers)
        assert all(isinstance(value, str) for group in [head, *workers] for value in group["rayStartParams"].values())
        for pod in (found["template"]["spec"] for found in objects(document) if "template" in found):
            memory = {of: pod["containers"][0]["resources"][of]["memory"] for of in ("limits", "requests")}
            assert memory["limits"] == memory["requests"]
    program, command, *arguments = shlex.split(document["spec"]["entrypoint"])
    given = parsed(command, *arguments)
    assert (program, given["systems"], given["address"]) == ("tutti", ("s2",), "auto")
    deployed = {d["metadata"]["name"]: d["spec"] for d in YAML["mlflow.yaml"] if "template" in d.get("spec", {})}
    services = {d["metadata"]["name"]: d["spec"] for d in YAML["mlflow.yaml"] if d["kind"] == "Service"}
    labels = {name: spec["template"]["metadata"]["labels"] for name, spec in deployed.items()}
    assert {name: spec["selector"]["matchLabels"] for name, spec in deployed.items()} == labels
    assert {name: spec["selector"] for name, spec in services.items()} == labels
    assert not any("type" in spec for spec in services.values())  # no NodePort, no LoadBalancer
    of_ray, of_database = (document["spec"] for document in YAML["networkpolicy.yaml"])
    assert of_database["podSelector"]["matchLabels"] == labels["mlflow-db"]
    assert of_database["ingress"] == [{"from": [{"podSelector": {"matchLabels": labels["mlflow"]}}]}]
    assert of_ray["podSelector"] == {"matchExpressions": [{"key": "ray.io/node-type", "operator": "Exists"}]}
    assert {"podSelector": of_ray["podSelector"]} in of_ray["ingress"][0]["from"]
    assert all((of["policyTypes"], len(of["ingress"])) == (["Ingress"], 1) for of in (of_ray, of_database))


def test_launcher_and_script_make_a_token_no_secret_is_written_down_and_the_image_has_every_package():
    (launcher,) = YAML["launcher.yaml"]
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(launcher, schema)
    assert "--dashboard-host=127.0.0.1" in launcher["head_start_ray_commands"][-1]
    assert launcher["max_workers"] == len(launcher["provider"]["worker_ips"])
    assert "--env=RAY_AUTH_MODE=token" in launcher["docker"]["run_options"]
    subprocess.run(["bash", "-n", MANIFESTS / "slurm.sh"], check=True)
    script = (MANIFESTS / "slurm.sh").read_text()
    assert "export RAY_AUTH_MODE=token" in script
    assert "RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')" in script
    variables = [found for found in objects(list(YAML.values())) if found.keys() & {"value", "valueFrom"}]
    secret = [v for v in variables if any(word in v["name"] for word in ("PASSWORD", "TOKEN", "KEY", "USERNAME"))]
    assert len(secret) >= 4
    assert all("secretKeyRef" in variable["valueFrom"] for variable in secret)
    recipe = (MANIFESTS / "Dockerfile").read_text()
    assert all(f"COPY {package} {package}\n" in recipe for package in PACKAGES)
