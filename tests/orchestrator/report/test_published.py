"""Published figures beside measured ones."""

import json

from orchestrator.plan import make_plan
from orchestrator.report.collect import DEVELOPMENT_SET, published
from orchestrator.report.page import write_report
from orchestrator.system import load_system
from tests.orchestrator.report import test_page

MACHINES = sorted(DEVELOPMENT_SET)
LADDER = load_system("ladder", backbone="tiny")


def expected(branches, machines=MACHINES):
    """What a report says of a sub-system of two configurations, one of which states its published Omega."""
    subsystems = {"near": {"a": {"expected": 61.0, "seeds": [0, 1]}, "b": {"expected": None, "seeds": [0]}}}
    machines = {"in_sample": {machine: {"hmean": 60.0} for machine in machines}}
    return published({"machines": machines, "spec": {"subsystems": subsystems}, "branches": branches})


def test_expected_values_stand_beside_the_mean_over_seeds_on_their_data_alone():
    branches = [{"branch": f"near/a/{seed}", "omega": 60.0 + seed} for seed in (0, 1)]
    assert expected(branches) == [("near/a", 61.0, 60.5)]
    assert expected([]) == [("near/a", 61.0, None)]
    assert expected(branches, ["fan"]) == []


def test_expected_values_are_no_part_of_a_branch():
    plain = LADDER.model_dump()
    for configurations in plain["subsystems"].values():
        for configuration in configurations.values():
            assert 60 < configuration.pop("expected") < 70
    assert make_plan([type(LADDER).model_validate(plain)], None) == make_plan([LADDER], None)


def test_the_report_shows_them(tmp_path, monkeypatch):
    monkeypatch.setattr(test_page, "MACHINES", tuple(MACHINES))
    result = test_page.add_system(tmp_path, "s1", {"bands": {"softmax": ["b0/m"]}})
    subsystems = {"bands": {"softmax": {"expected": 61.0, "seeds": [0]}}}
    result["spec"] = {"subsystems": subsystems}
    (tmp_path / "systems" / "s1" / "result.json").write_text(json.dumps(result))
    page = write_report(tmp_path).read_text()
    (measured,) = [b["omega"] for b in result["branches"] if b["branch"] == "bands/softmax/0"]
    deviation = f"{measured - 61:+.2f}".replace("-", "−")
    assert f"<td>bands/softmax</td><td>61.00</td><td>{measured:.2f}</td><td>{deviation}</td>" in page
