"""Published figures beside measured ones."""

import json

import numpy as np
import pytest

from orchestrator.plan import make_plan
from orchestrator.report.collect import System
from orchestrator.report.page import write_report
from orchestrator.report.published import OMEGA, TABLE_1, against_the_report, expected
from orchestrator.system import load_system
from tests.orchestrator.report import test_page

MACHINES = sorted(TABLE_1.keys() - {OMEGA})
LADDER = load_system("ladder", backbone="tiny")


def system(name, machines=MACHINES, **result):
    hmeans = {machine: {"hmean": 60.0 + i} for i, machine in enumerate(machines)}
    return System(
        {
            "system": name,
            "machines": {"in_sample": hmeans, "lomo": hmeans},
            "delivered": {"lomo": 63.0},
            "methods": {"tpe": {"in_sample": 65.0, "machines": hmeans}},
            **result,
        },
        {},
    )


def test_table_1_is_the_reports():
    """Its last row is the harmonic mean of the others, so that a slip of the pen would be seen."""
    values = np.array([TABLE_1[machine] for machine in MACHINES])
    np.testing.assert_allclose(len(values) / (1 / values).sum(axis=0), TABLE_1[OMEGA], atol=0.01)


def test_the_reports_systems_stand_beside_its_table_on_its_data_alone():
    rows = {row.name: row for row in against_the_report(system("s3"))}
    assert rows["ToyCar"].published == 75.05
    assert rows["ToyCar"].measured == rows["ToyCar"].delivered == 60.0 + MACHINES.index("ToyCar")
    assert (rows[OMEGA].measured, rows[OMEGA].delivered) == (65.0, 63.0)
    assert rows[OMEGA].deviation == pytest.approx(65.0 - 68.20)
    assert against_the_report(system("s3", MACHINES[:-1])) == []
    assert against_the_report(system("s5")) == []


def test_expected_values_stand_beside_the_mean_over_seeds():
    subsystems = {"near": {"a": {"expected": 61.0, "seeds": [0, 1]}, "b": {"expected": None, "seeds": [0]}}}
    branches = [{"branch": f"near/a/{seed}", "omega": 60.0 + seed} for seed in (0, 1)]
    (row,) = expected(system("mine", spec={"subsystems": subsystems}, branches=branches))
    assert (row.name, row.published, row.measured, row.deviation) == ("near/a", 61.0, 60.5, -0.5)
    (lost,) = expected(system("mine", spec={"subsystems": subsystems}, branches=[]))
    assert lost.deviation is None
    assert expected(system("mine", ["fan"], spec={"subsystems": subsystems}, branches=branches)) == []


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
    assert f"<td>bands/softmax</td><td>61.00</td><td>{measured:.2f}</td>" in page
    tpe = result["methods"]["tpe"]
    assert f"<td>ToyCar</td><td>66.26</td><td>{tpe['machines']['ToyCar']['hmean']:.2f}</td>" in page
    assert f"<td>Omega</td><td>64.04</td><td>{tpe['in_sample']:.2f}</td>" in page
