"""Published figures beside measured ones."""

from orchestrator.plan import make_plan
from orchestrator.report.collect import DEVELOPMENT_SET, published
from orchestrator.system import SystemSpec, load_system


def expected(branches, machines):
    """What a report says of a sub-system of two configurations, one of which states its published Omega."""
    subsystems = {"near": {"a": {"expected": 61.0, "seeds": [0, 1]}, "b": {"expected": None, "seeds": [0]}}}
    machines = {"in_sample": {machine: {"hmean": 60.0} for machine in machines}}
    return published({"machines": machines, "spec": {"subsystems": subsystems}, "branches": branches})


def test_expected_values_stand_beside_the_mean_over_seeds_on_their_data_alone():
    branches = [{"branch": f"near/a/{seed}", "omega": 60.0 + seed} for seed in (0, 1, 5)]
    assert expected(branches, DEVELOPMENT_SET) == [("near/a", 61.0, 60.5)]
    assert expected([], DEVELOPMENT_SET) == [("near/a", 61.0, None)]
    for others in (DEVELOPMENT_SET - {"fan"}, DEVELOPMENT_SET | {"gear"}):
        assert expected(branches, others) == []


def test_expected_values_are_no_part_of_a_branch():
    ladder = load_system("ladder", backbone="tiny")
    plain = ladder.model_dump()
    for configurations in plain["subsystems"].values():
        for configuration in configurations.values():
            assert 60 < configuration.pop("expected") < 70
    assert make_plan([SystemSpec.model_validate(plain)], None) == make_plan([ladder], None)
