"""The report of results that a real fusion made, also as a browser shows it; and figures, sound, verdicts in it."""

import base64
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import soundfile

from fusion.search import fuse
from orchestrator.fuse import result as results
from orchestrator.fuse.result import describe, described_table
from orchestrator.report import figures
from orchestrator.report.collect import DEVELOPMENT_SET, System, collect, labelled, published
from orchestrator.report.page import write_report
from orchestrator.report.sound import most_wrong
from orchestrator.report.verdict import differences
from scoring.bootstrap import bootstrap_intervals
from scoring.decisions import thresholds
from scoring.errors import InputError
from scoring.metrics import official_metrics
from scoring.table import read_table, write_table
from tests.orchestrator.conftest import write_truth
from tests.tables import make_table

pytestmark = pytest.mark.slow
MACHINES = ("fan", "pump", "valve")
NAMES = {"a0/m": "near/arcface/0", "a1/m": "near/arcface/1", "b0/m": "bands/softmax/0", "c0/m": "bands/<lora>/0"}
SMALL = {"near": {"arcface": ["a0/m"]}}
TREE = {"near": {"arcface": ["a0/m", "a1/m"]}, "bands": {"softmax": ["b0/m"], "<lora>": ["c0/m"]}}
EXPECTED = {"subsystems": {"near": {"arcface": {"expected": 61.0, "seeds": [0, 1]}}}}
TABLES = {name: make_table(MACHINES, per_cell=8, seed=seed) for seed, name in enumerate(NAMES)}
FIGURES = 2 + 3  # one configuration alone needs no picture of its weights
FROM_ELSEWHERE = r'\b(?:src|href)="(?!#|data:)'  # what a page would load


def add_system(out, name, tables, baseline=None):
    fusion = fuse(tables, TREE if len(tables) > 1 else SMALL)
    folder = out / "systems" / name
    folder.mkdir(parents=True)
    if fusion.held_out is not None:
        write_table(fusion.held_out, folder / "held_out.parquet")
    about = {"system": name, "spec": EXPECTED, "description": "of <b>tests</b>", "dataset": "abc", "baseline": None}
    if baseline is not None:
        (out / "branches" / "b9" / "tables").mkdir(parents=True, exist_ok=True)
        write_table(baseline, out / "branches" / "b9" / "tables" / "m.parquet")
        about["baseline"] = {"name": "log-mel baseline", **described_table("b9/m", "", "m", baseline)}
    branches = [described_table(name, NAMES[name], "m", table) for name, table in tables.items()]
    checksum = write_table(fusion.table, folder / "fused.parquet")
    result = {**about, **describe(fusion), "branches": branches, "sha256": checksum, "made": {}}
    (folder / "result.json").write_text(json.dumps(result))
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out, baseline = tmp_path_factory.mktemp("run"), make_table(MACHINES, per_cell=8, seed=9)
    some = {"one": {"a0/m": TABLES["a0/m"]}, "two": TABLES}
    results = {name: add_system(out, name, tables, baseline) for name, tables in some.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.report.collect.DEVELOPMENT_SET", set(MACHINES))
        yield out, results, write_report(out).read_text()


def number(text):
    return float(text.replace("−", "-"))


def test_everything_is_there_in_one_file_that_opens_with_a_verdict_and_has_the_best_of_a_row_bold(run):
    out, results, text = run
    assert write_report(out).read_text() == text
    assert text.count("<svg") == text.count("<figcaption") == FIGURES
    assert not re.search(FROM_ELSEWHERE, text)
    assert [piece in text for piece in ("<script", "<b>tests", "None")] == [False] * 3
    assert "nan" not in re.findall(r">([^<]*)<", text)
    assert re.findall(">([^<]*)</h2>", text) == ["Systems", "System one", "System two", "Branches"]
    mean = np.mean([branch["omega"] for branch in results["two"]["branches"][:2]])
    published = r"<td>near/arcface</td><td>61.00</td><td>([\d.]+)</td><td>(.*?)</td>"
    row = re.search(published, text[text.index("System two</h2>") :])
    assert [number(value) for value in row.groups()] == pytest.approx([mean, mean - 61], abs=0.006)
    alike, branches = re.findall(r'<table class="heat">(.*?)</table>', text, re.DOTALL)
    assert re.findall("<th>(.*?)</th>", branches) == ["", *MACHINES, "Omega"]
    omegas = [float(value) for value in re.findall(r"([\d.]+)</td></tr>", branches)]
    assert (len(omegas), omegas) == (4, sorted(omegas, reverse=True))
    assert "bands/&lt;lora&gt;/0" in branches
    assert alike.count(">1.00</td>") == 3
    assert "<th>log-mel baseline</th><th>one</th><th>two</th>" in text
    row = re.search(r'<tr class="total"><td>Omega</td>(.*)</tr>', text)[1]
    cells = re.findall(r"<td( class=\"best\")?>([\d.]+)<small>([\d.]+) – ([\d.]+)</small></td>", row)
    expected = [results["one"]["baseline"]["omega"], *(result["delivered"]["lomo"] for result in results.values())]
    assert [(cell[1], bool(cell[0])) for cell in cells] == [(f"{v:.2f}", v == max(expected)) for v in expected]
    assert cells[2][2:] == tuple(f"{bound:.1f}" for bound in results["two"]["delivered"]["ci"])
    held_out = bootstrap_intervals(read_table(out / "systems" / "two" / "held_out.parquet"))
    valve = re.findall(r"<small>([\d.]+) – ([\d.]+)</small>", re.search(r"<tr><td>valve</td>(.*)</tr>", text)[1])
    assert valve[2] == tuple(f"{bound:.1f}" for bound in held_out.machines["valve"]["hmean"])
    of_two = text[text.index("System two</h2>") :]
    figure = f"{results['two']['omega']:.2f}"
    assert re.search(rf"<td>[\w ]+, delivered</td><td>[\d.]+</td><td>{figure}</td>", of_two)
    assert f"<td></td><td>{figure}<small>" in of_two
    opening = text[text.index('<section class="verdict">') : text.index("</section>")]
    opening = " ".join(re.sub("<[^>]*>", " ", opening).split())
    omega = {name: result["delivered"]["lomo"] for name, result in results.items()}
    other, best = sorted(omega, key=omega.__getitem__)
    assert opening.startswith(f"{best} reaches {omega[best]:.1f} % on held-out machines")
    hmeans = {machine: m["hmean"] for machine, m in results[best]["machines"]["lomo"].items()}
    weakest = min(hmeans, key=hmeans.__getitem__)
    assert f"Its weakest machine is {weakest} with {hmeans[weakest]:.1f} %." in opening
    over = number(re.search(r"the log-mel baseline ([+−][\d.]+)", opening)[1])
    difference = re.search(rf"system {other} ([+−][\d.]+) ([+−][\d.]+) to ([+−][\d.]+)", opening)
    gain, low, high = map(number, difference.groups())
    others = [results[best]["baseline"]["omega"], omega[other]]
    assert [omega[best] - over, omega[best] - gain] == pytest.approx(others, abs=0.006)
    assert low <= gain <= high
    assert f"tutti export {out} {best} --out model" in opening


def test_a_single_machine_is_compared_with_the_baseline_and_can_be_heard(tmp_path):
    baseline = make_table(["fan"], per_cell=8, seed=9)
    result = add_system(tmp_path, "one", {"a0/m": make_table(["fan"], per_cell=8)}, baseline)
    for row in baseline.select(["split", "clip"]).to_pylist():
        clip = tmp_path / "fan" / row["split"] / row["clip"]
        clip.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(clip, np.random.default_rng(0).normal(size=(4000, 2)) / 10, 16_000)
    text = write_report(tmp_path, audio=1, data=tmp_path).read_text()
    row = re.search(r"<tr><td>the log-mel baseline</td>.*", text)[0]
    gain, over_machines = re.search(r"<strong>([+−][\d.]+)</strong></td><td>[^<]*</td><td>([^<]*)</td>", row).groups()
    assert number(gain) == pytest.approx(result["delivered"]["in_sample"] - result["baseline"]["omega"], abs=0.006)
    assert over_machines == "–"  # one machine says nothing of others
    assert text.count("<audio") == text.count("<img") == 2
    assert not re.search(FROM_ELSEWHERE, text)


def test_without_labels_an_engineer_is_told_and_ground_truth_is_one_table_that_changes_nothing(tmp_path):
    unlabelled = make_table(MACHINES, per_cell=8, labelled=False)
    for name in ("hidden", "other"):
        result = add_system(tmp_path, name, {"a0/m": unlabelled}, unlabelled)
    assert result["delivered"]["in_sample"] is None
    (tmp_path / "formats.json").write_text('{"fan": {"seconds": [5, 10], "channels": [1]}}')
    blind, fused = write_report(tmp_path).read_text(), tmp_path / "systems" / "hidden" / "fused.parquet"
    told = ("Nothing could be measured", "tutti export", "tutti score", "submission", "--audio", "None")
    assert [words in blind for words in told] == [True, True, True, False, False, False]
    assert blind.count("<svg") == 2  # the scores of each
    table = read_table(fused)
    train = table.filter(pc.and_(pc.equal(table["machine"], "fan"), pc.equal(table["split"], "train")))
    share = np.mean(train["score"].to_numpy() > thresholds(table)["fan", 0])
    alarms = f"<td>{train.num_rows}</td><td>[^<]*</td><td>{100 * share:.1f} %</td><td>5 to 10 s</td>"
    assert re.search(f"<tr><td>fan</td>{alarms}<td>{share * 8640:.0f} to {share * 17280:.0f}</td>", blind)
    before, later = fused.read_bytes(), TABLES["a0/m"]
    for machine in MACHINES:
        write_truth(tmp_path, machine, later.filter(pc.equal(later["machine"], machine)).to_pylist())
    page = write_report(tmp_path, ground_truth=tmp_path).read_text()
    truth = page[page.index("With ground truth that came later") :]
    assert "<th>log-mel baseline</th><th>hidden</th><th>other</th>" in truth
    assert truth.count(f">{official_metrics(later).omega:.2f}<small>") == 3  # of the same scores
    assert (fused.read_bytes(), write_report(tmp_path).read_text()) == (before, blind)


def test_what_the_data_do_not_give_is_a_dash_or_a_sentence(tmp_path):
    source = make_table(("fan",), per_cell=8)
    source = source.filter(pc.equal(source["domain"], "source"))
    add_system(tmp_path / "odd", "odd", {"a0/m": pa.concat_tables([source, make_table(("pump",), section=1)])})
    text = write_report(tmp_path / "odd").read_text()
    assert ">pump 01</text>" in text
    assert "<td>–" in text
    normal = TABLES["a0/m"].filter(pc.not_equal(TABLES["a0/m"]["condition"], "anomaly"))
    add_system(tmp_path / "one", "one", {"a0/m": normal}, normal)
    text = write_report(tmp_path / "one").read_text()
    assert "Nothing could be measured" in text
    assert "Difference in Omega" not in text


def test_what_is_lost_damaged_or_of_other_data_is_said(run, tmp_path):
    out = shutil.copytree(run[0], tmp_path / "copy")
    table, result = out / "branches" / "b9" / "tables" / "m.parquet", out / "systems" / "one" / "result.json"
    table.unlink()
    result.write_text(result.read_text().replace('"dataset": "abc"', '"dataset": "def"'))
    text = write_report(out).read_text()
    assert f"{table}: no such score table. System one is not compared with the log-mel baseline." in text
    assert "<td>the log-mel baseline</td>" not in text
    assert "different data sets" in text
    unreadable = f"not a readable.*; remove {out / 'systems' / 'two'} and run the"
    damaged = {"held_out.parquet": unreadable, "fused.parquet": unreadable, "result.json": "no result of a fusion"}
    for name, told in damaged.items():  # what is read first comes last
        path = out / "systems" / "two" / name
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(InputError, match=f"{name}: {told}"):
            collect(out)


MEASURE = """<script>
addEventListener("load", () => {
  document.body.textContent = JSON.stringify([...document.querySelectorAll("svg")].map(svg => {
    const box = svg.getBoundingClientRect(), inside = p => p.left > box.left - 2 && p.right < box.right + 2;
    const texts = [...svg.querySelectorAll("text")].map(text => text.getBoundingClientRect());
    return texts.every(inside) && Math.min(box.width, svg.getBBox().width) > 100;
  }));
});
</script>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_a_browser_shows_every_figure_with_its_texts(run, tmp_path):
    page = tmp_path / "measured.html"
    page.write_text(run[2] + MEASURE)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"]
    command = ["chromium", *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in shown.stderr
    assert f"<body>{json.dumps([True] * FIGURES, separators=(',', ':'))}</body>" in shown.stdout


def test_expected_values_stand_beside_the_mean_over_seeds_on_their_data_alone(monkeypatch):
    monkeypatch.setattr("orchestrator.report.collect.DEVELOPMENT_SET", DEVELOPMENT_SET)  # which `run` changes

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


def test_the_tree_shows_weights_of_configurations_and_of_their_sub_systems_and_what_they_add(monkeypatch):
    weights = {"a": {"x": 0.5, "y": 0.25}, "b": {"z": 0.25, "none": 0.0}}
    complementarity = {"marginal": {"a/x": 1.5, "a/y": -0.25, "b/z": None}}
    result = {"system": "mine", "delivered": {"weights": weights}, "complementarity": complementarity}

    def texts():
        return {" ".join(text.split()) for text in re.findall(r"<!-- (.*?) -->", figures.weight_tree(result))}

    assert {"mine", "a 0.75", "b 0.25", "0.500", "0.000", "+1.50", "−0.25"} <= texts()
    monkeypatch.setattr(results, "LARGEST", 2)
    weights["b"]["none"] = 0.3
    assert texts() & {"a 0.75", "b 0.55", "x", "y", "z", "none"} == {"a 0.75", "b 0.55", "x", "none"}


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
    gain = {"gain": 1.0, "clips": [0.5, 1.5], "machines": [-0.5, 2.0]}
    simple = system("one", 3.0, gains={"uniform": gain, "best_single": gain})
    (best,) = differences(simple, [simple])
    assert (best["over"], best["meaning"]) == ("the best single configuration", "within chance on other machines")
