import json

import yaml

from tests.commands import tutti_here


def test_systems_are_listed_and_shown_as_they_will_be_used():
    listed = json.loads(tutti_here("systems", "--json").stdout)["systems"]
    assert {"s1", "s2", "s3", "s4", "s5", "demo"} <= {system["name"] for system in listed}
    lines = tutti_here("systems").stdout.splitlines()
    assert len(lines) == len(listed)
    assert "s2 (10 score tables): System 2 of the report" in "\n".join(lines)
    shown = tutti_here("show", "s1", "--backbone", "tiny", "--set", "branch.training.steps=30")
    (configuration,) = yaml.safe_load(shown.stdout)["subsystems"]["mahalanobis"].values()
    assert configuration["branch"]["backbone"]["path"] == "tiny"
    assert configuration["branch"]["training"]["steps"] == 30
    assert configuration["branch"]["training"]["accumulation"] == 1  # a default
    assert json.loads(tutti_here("show", "s1", "--json").stdout)["name"] == "s1"
