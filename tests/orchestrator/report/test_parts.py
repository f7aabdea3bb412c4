"""What a report is made of: figures, sound, verdicts, and what a folder gives."""

import base64
import io
import re

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from orchestrator.report import figures
from orchestrator.report.collect import DEVELOPMENT_SET, System, labelled, published
from orchestrator.report.sound import most_wrong
from orchestrator.report.verdict import differences
from scoring.decisions import thresholds
from scoring.errors import InputError
from tests.tables import make_table


def test_expected_values_stand_beside_the_mean_over_seeds_on_their_data_alone():
    def expected(branches, machines):
        subsystems = {"near": {"a": {"expected": 61.0, "seeds": [0, 1]}, "b": {"expected": None, "seeds": [0]}}}
        machines = {"in_sample": {machine: {"hmean": 60.0} for machine in machines}}
        return published({"machines": machines, "spec": {"subsystems": subsystems}, "branches": branches})

    branches = [{"branch": f"near/a/{seed}", "omega": 60.0 + seed} for seed in (0, 1, 5)]
    assert expected(branches, DEVELOPMENT_SET) == [("near/a", 61.0, 60.5)]
    assert expected([], DEVELOPMENT_SET) == [("near/a", 61.0, None)]
    for others in (DEVELOPMENT_SET - {"fan"}, DEVELOPMENT_SET | {"gear"}):
        assert expected(branches, others) == []


def scored(score):
    """A table of one machine whose scores follow from a row's split, domain and condition."""
    table = make_table(["fan"])
    columns = (table[name].to_pylist() for name in ("split", "domain", "condition"))
    noise = np.random.default_rng(0).normal(size=table.num_rows) / 10
    values = [score(*row) for row in zip(*columns, strict=True)] + noise
    return table.set_column(table.schema.get_field_index("score"), "score", pa.array(values))


def test_roc_curves_and_distributions_compare_normals_with_anomalies_by_domain_and_by_condition(monkeypatch):
    monkeypatch.setattr(figures, "_as_svg", lambda figure, _: figure.axes[0].get_legend_handles_labels()[::-1])
    # Anomalies lie above all normals of the source and below those of the target.
    table = scored(lambda _, domain, condition: 10 if condition == "anomaly" else 20 * (domain == "target"))
    lines = dict(zip(*figures.roc(table, "x"), strict=True))
    areas = [np.trapezoid(*lines[name].get_data()[::-1]) for name in ("source", "target", "all clips")]
    assert areas == pytest.approx([1, 0, 0.5])
    table = scored(lambda split, _, condition: -1 if split == "train" else 9 if condition == "anomaly" else 4)
    found = dict(zip(*figures.distributions(table, "x"), strict=True))
    for name, mode in (("normal test clips", 4), ("anomalies", 9)):
        outline = found[name].get_xy()
        assert outline[outline[:, 1].argmax(), 0] == pytest.approx(mode, abs=0.6)
    highest = max(found["training clips"].axes.containers[0], key=lambda bar: bar.get_height())
    assert highest.get_x() == pytest.approx(-1, abs=0.6)
    assert found["threshold"].get_xdata()[0] == thresholds(table)["fan", 0]
    outlier = table["score"].to_numpy().copy()
    outlier[0] = 1e6  # one of 52 clips
    squeezed = table.set_column(table.schema.get_field_index("score"), "score", pa.array(outlier))
    labels, handles = figures.distributions(squeezed, "x")
    assert handles[labels.index("anomalies")].axes.get_xlim()[1] < 30
    labels, _ = figures.distributions(make_table(["fan"], train=0), "x")
    assert labels == ["normal test clips", "anomalies"]


def test_the_tree_shows_weights_of_configurations_and_of_their_sub_systems_and_what_they_add():
    weights = {"a": {"x": 0.5, "y": 0.25}, "b": {"z": 0.25, "none": 0.0}}
    complementarity = {"marginal": {"a/x": 1.5, "a/y": -0.25, "b/z": None}}
    result = {"system": "mine", "delivered": {"weights": weights}, "complementarity": complementarity}
    texts = [" ".join(text.split()) for text in re.findall(r"<!-- (.*?) -->", figures.weight_tree(result))]
    assert {"mine", "a 0.75", "b 0.25", "0.500", "0.000", "+1.50", "−0.25"} <= set(texts)


def test_the_most_wrong_clips_are_heard_by_their_first_channel_and_called_as_they_were(tmp_path):
    table = make_table(["fan"], per_cell=8)
    rows = [row for row in table.to_pylist() if row["split"] == "test"]
    (tmp_path / "fan" / "test").mkdir(parents=True)
    for row in rows:
        sound = np.stack([np.full(4000, 0.25), np.full(4000, -0.5)], axis=1)
        soundfile.write(tmp_path / "fan" / "test" / row["clip"], sound, 16_000)
    worst = max((row for row in rows if row["condition"] == "normal"), key=lambda row: row["calibrated"])["clip"]
    (tmp_path / "recordings.csv").write_text(f"clip,recording,start\nfan/test/{worst},mine.wav,3.5\n")
    system = System({"made": {"data": str(tmp_path)}}, table, None)
    found = most_wrong(system, 2, None)
    scores = {kind: sorted(r["calibrated"] for r in rows if r["condition"] == kind) for kind in ("normal", "anomaly")}
    expected = [("false alarm", "fan", score) for score in scores["normal"][:-3:-1]]
    expected += [("miss", "fan", score) for score in scores["anomaly"][:2]]
    assert [(r.mistake, r.machine, r.score) for r in found] == expected
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(found[0].sound.partition("base64,")[2])))
    assert (found[0].clip, len(samples), rate, found[0].seconds) == ("mine.wav, from 3.5 s", 4000, 16_000, 0.25)
    assert samples == pytest.approx(0.25, abs=1e-3)
    assert found[0].spectrogram.startswith("data:image/png;base64,")
    assert found[0].changed == ""  # without the training clips
    (tmp_path / "fan" / "train").mkdir()
    for i, row in enumerate(row for row in table.to_pylist() if row["split"] == "train"):
        noise = np.random.default_rng(i).normal(scale=0.1, size=4000)
        soundfile.write(tmp_path / "fan" / "train" / row["clip"], noise, 16_000)
    assert most_wrong(system, 1, None)[0].changed.endswith(" dB below normal")
    unknown = System({"made": {}}, make_table(["fan"], per_cell=8, labelled=False), None)
    highest = sorted((row["calibrated"] for row in rows), reverse=True)[:2]
    assert [r.score for r in most_wrong(unknown, 2, tmp_path)] == highest
    with pytest.raises(InputError, match="name their data set with --data"):
        most_wrong(system, 1, tmp_path / "nowhere")
    (tmp_path / "fan" / "test" / worst).unlink()
    with pytest.raises(InputError, match=rf"no {worst} in it; name the run's data set"):
        most_wrong(system, 1, tmp_path)


MACHINES = ("fan", "pump", "valve")


def system(name, separation, machines=MACHINES, baseline=None, gains=(), held_out=True):
    table = make_table(machines, per_cell=20, separation=separation)
    delivered = {"method": "uniform", "gains": dict(gains)}
    result = {"system": name, "delivered": delivered, "baseline": {"name": "baseline"}}
    return System(result, table, labelled(table) if held_out else None, baseline=baseline)


def test_differences_are_paired_and_say_whether_they_are_chance():
    good = system("good", 3.0, baseline=make_table(MACHINES, 20, seed=3))
    same, poor, away = system("same", 3.0), system("poor", 0), system("away", 1, ["gear"])
    found = differences(good, [good, same, poor, away, system("blind", 1, held_out=False)])
    rows = {row["over"]: row for row in found}
    meanings = {"the baseline": "better", "system same": "within chance on these machines", "system poor": "better"}
    assert {over: row["meaning"] for over, row in rows.items()} == meanings
    assert rows["system same"]["clips"] == rows["system same"]["machines"] == (0, 0)
    one, two = system("one", 3.0, ["fan"]), system("two", 0.0, ["fan"])
    assert [row["machines"] for row in differences(one, [one, two])] == [None]  # one machine says nothing of others
    (worse,) = differences(poor, [poor, good])
    assert (worse["meaning"], worse["gain"]) == ("worse", pytest.approx(-rows["system poor"]["gain"]))
    gain = {"gain": 1.0, "clips": [0.5, 1.5], "machines": [-0.5, 2.0]}
    simple = system("one", 3.0, gains={"uniform": gain, "best_single": gain})
    assert {row["over"]: row["meaning"] for row in differences(simple, [simple])} == {
        "the best single configuration": "within chance on other machines",
    }
