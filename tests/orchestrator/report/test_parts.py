"""What a report is made of: figures, sound, verdicts, and what a folder gives."""

import base64
import io
import re

import matplotlib
import numpy as np
import pyarrow as pa
import pytest
import soundfile

from orchestrator.plan import make_plan
from orchestrator.report import figures
from orchestrator.report.collect import DEVELOPMENT_SET, System, published
from orchestrator.report.sound import most_wrong
from orchestrator.report.verdict import differences
from orchestrator.system import SystemSpec, load_system
from scoring.decisions import thresholds
from scoring.errors import InputError
from tests.tables import make_table


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


@pytest.fixture
def drawn(monkeypatch):
    """Lines, outlines and bars of a figure's first axes by their label."""
    monkeypatch.setattr(figures, "_as_svg", lambda figure, _: figure)

    def artists(figure):
        handles, labels = figure.axes[0].get_legend_handles_labels()
        return dict(zip(labels, handles, strict=True))

    with matplotlib.rc_context(figures.STYLE):
        yield artists


def scored(score):
    """A table of one machine whose scores follow from a row's split, domain and condition."""
    table = make_table(["fan"])
    columns = (table[name].to_pylist() for name in ("split", "domain", "condition"))
    noise = np.random.default_rng(0).normal(size=table.num_rows) / 10
    values = [score(*row) for row in zip(*columns, strict=True)] + noise
    return table.set_column(table.schema.get_field_index("score"), "score", pa.array(values))


def test_roc_curves_compare_anomalies_with_normals_of_one_domain_and_of_both(drawn):
    """Anomalies lie above all normals of the source and below those of the target."""
    table = scored(lambda _, domain, condition: 10 if condition == "anomaly" else 20 * (domain == "target"))
    lines = drawn(figures.roc(table, "x"))
    areas = [np.trapezoid(*lines[name].get_data()[::-1]) for name in ("source", "target", "all clips")]
    assert areas == pytest.approx([1, 0, 0.5])


def test_distributions_are_of_test_clips_by_condition_with_the_threshold_of_the_training_clips(drawn):
    table = scored(lambda split, _, condition: -1 if split == "train" else 9 if condition == "anomaly" else 4)
    found = drawn(figures.distributions(table, "x"))
    for name, mode in (("normal test clips", 4), ("anomalies", 9)):
        outline = found[name].get_xy()
        assert outline[outline[:, 1].argmax(), 0] == pytest.approx(mode, abs=0.6)
    highest = max(found["training clips"].axes.containers[0], key=lambda bar: bar.get_height())
    assert highest.get_x() == pytest.approx(-1, abs=0.6)
    assert found["threshold"].get_xdata()[0] == thresholds(table)["fan", 0]
    elsewhere = drawn(figures.distributions(make_table(["fan"], train=0), "x"))
    assert elsewhere.keys() == {"normal test clips", "anomalies"}


def test_the_tree_shows_weights_of_configurations_and_of_their_sub_systems_and_what_they_add():
    weights = {"a": {"x": 0.5, "y": 0.25}, "b": {"z": 0.25, "none": 0.0}}
    complementarity = {"marginal": {"a/x": 1.5, "a/y": -0.25, "b/z": None}}
    result = {"system": "mine", "delivered": {"weights": weights}, "complementarity": complementarity}
    svg = figures.weight_tree(result)
    texts = [" ".join(text.split()) for text in re.findall(r"<!-- (.*?) -->", svg)]
    assert {"mine", "a 0.75", "b 0.25", "0.500", "0.000", "+1.50", "−0.25"} <= set(texts)


def test_the_most_wrong_clips_are_heard_by_their_first_channel_and_called_as_they_were(tmp_path):
    table = make_table(["fan"], per_cell=8)
    rows = [row for row in table.to_pylist() if row["split"] == "test"]
    (tmp_path / "fan" / "test").mkdir(parents=True)
    for row in rows:
        sound = np.stack([np.full(4000, 0.25), np.full(4000, -0.5)], axis=1)
        soundfile.write(tmp_path / "fan" / "test" / row["clip"], sound, 16_000)
    worst = max((row for row in rows if row["condition"] == "normal"), key=lambda row: row["calibrated"])
    imported = f"clip,recording,start\nfan/test/{worst['clip']},mine.wav,3.5\n"
    (tmp_path / "recordings.csv").write_text(imported)
    system = System({"made": {"data": str(tmp_path)}}, table, None, {}, None, None)
    found = most_wrong(system, 2, None)
    assert [(r.mistake, r.machine) for r in found] == [("false alarm", "fan")] * 2 + [("miss", "fan")] * 2
    for mistake, condition, first in (("false alarm", "normal", -1), ("miss", "anomaly", 1)):
        scores = sorted((row["calibrated"] for row in rows if row["condition"] == condition), key=lambda s: first * s)
        assert [r.score for r in found if r.mistake == mistake] == scores[:2]
    assert found[0].clip == "mine.wav, from 3.5 s"
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(found[0].sound.partition("base64,")[2])))
    assert (len(samples), rate, found[0].seconds) == (4000, 16_000, 0.25)
    assert samples == pytest.approx(0.25, abs=1e-3)
    assert found[0].spectrogram.startswith("data:image/png;base64,")
    unknown = System({"made": {}}, make_table(["fan"], per_cell=8, labelled=False), None, {}, None, None)
    scores = [r.score for r in most_wrong(unknown, 2, tmp_path)]
    assert scores == sorted((row["calibrated"] for row in rows), reverse=True)[:2]
    with pytest.raises(InputError, match="name their data set with --data"):
        most_wrong(system, 1, tmp_path / "nowhere")
    next((tmp_path / "fan" / "test").glob(worst["clip"])).unlink()
    with pytest.raises(InputError, match=rf"no {worst['clip']} in it; name the run's data set"):
        most_wrong(system, 1, tmp_path)


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
    one, two = system("one", 3.0, ["fan"]), system("two", 0.0, ["fan"])
    assert [row["machines"] for row in differences(one, [one, two])] == [None]  # one machine says nothing of others
    (worse,) = differences(poor, [poor, good])
    assert worse["meaning"] == "worse"
    assert worse["gain"] == pytest.approx(-rows["system poor"]["gain"])


def test_gains_over_simple_methods_are_of_held_out_machines():
    one = system("one", 3.0, gains=GAINS)
    rows = {row["over"]: row["meaning"] for row in differences(one, [one])}
    cost = "the cost of choosing the method without the machine"
    chance = "within chance on other machines"
    assert rows == {"uniform weights": cost, "the best single configuration": chance}
