import pytest

from orchestrator.report.collect import System
from orchestrator.report.verdict import differences
from tests.tables import make_table

MACHINES = ("fan", "pump", "valve")
GAINS = {name: {"gain": 1.0, "clips": [0.5, 1.5], "machines": [-0.5, 2.0]} for name in ("uniform", "best_single")}


def system(name, separation, machines=MACHINES, baseline=None, gains=(), seed=0, held_out=True):
    table = make_table(machines, per_cell=20, separation=separation, seed=seed)
    result = {
        "system": name,
        "delivered": {"method": "uniform", "gains": dict(gains)},
        "baseline": {"name": "baseline"},
    }
    return System(result, table, table if held_out else None, {}, baseline, None)


def test_differences_are_paired_and_say_whether_they_are_chance():
    good, same, poor = (
        system("good", 3.0, baseline=make_table(MACHINES, 20, seed=3)),
        system("same", 3.0),
        system("poor", 0),
    )
    others = [good, same, poor, system("away", 1, ["gear"]), system("blind", 1, held_out=False)]
    rows = {row["over"]: row for row in differences(good, others)}
    assert list(rows) == ["the baseline", "system same", "system poor"]
    assert [row["meaning"] for row in rows.values()] == ["better", "within chance on these machines", "better"]
    assert rows["system same"]["clips"] == rows["system same"]["machines"] == (0, 0)
    (worse,) = differences(poor, [poor, good])
    assert worse["meaning"] == "worse"
    assert worse["gain"] == pytest.approx(-rows["system poor"]["gain"])


def test_one_machine_says_nothing_of_others():
    one, two = system("one", 3.0, ["fan"]), system("two", 0.0, ["fan"])
    assert [row["machines"] for row in differences(one, [one, two])] == [None]


def test_gains_over_simple_methods_are_of_held_out_machines():
    one = system("one", 3.0, gains=GAINS)
    rows = {row["over"]: row["meaning"] for row in differences(one, [one])}
    cost = "the cost of choosing the method without the machine"
    chance = "within chance on other machines"
    assert rows == {"uniform weights": cost, "the best single configuration": chance}
