import pytest
from mlflow.utils.validation import _validate_metric_name

from orchestrator.ledger.folders import Record
from orchestrator.tracking.presentation import shown

MACHINES = ["fan", "Lüfter (A)", "Lüfter [A]", "a:b", "a;b", "press*" + 250 * "x", "press+" + 250 * "x", "v1.2"]


def test_machines_of_any_name_have_metrics_of_their_own(tmp_path):
    metrics = {f"knn.{machine}.{cell}": 50.0 + i for i, machine in enumerate(MACHINES) for cell in ("hmean", "pauc")}
    record = Record(
        name="a/b/0",
        identity={"role": "branch"},
        metrics={"knn.omega": 60.0, **metrics},
        files={"tables/knn.parquet": ""},
    )
    made = shown(tmp_path, record)
    for name in made.metrics:
        _validate_metric_name(name)
    hmeans = {name: value for name, value in made.metrics.items() if name.startswith("hmean/")}
    assert sorted(hmeans.values()) == [50.0 + i for i in range(len(MACHINES))]
    assert made.metrics["hmean/fan"] == 50.0
    assert made.metrics["hmean/v1.2"] == 57.0
    # The description has the names as they are.
    assert made.tables[0].rows[0][0] in MACHINES


@pytest.mark.parametrize("machine", ["fan", "Lüfter (A)"])
def test_a_name_does_not_depend_on_the_other_machines_unless_it_must(tmp_path, machine):
    record = Record(
        name="b", identity={"role": "branch"}, metrics={f"knn.{machine}.hmean": 1.0}, files={"tables/knn.parquet": ""}
    )
    assert list(shown(tmp_path, record).metrics) == [f"hmean/{machine.replace('(', '_').replace(')', '_')}"]
