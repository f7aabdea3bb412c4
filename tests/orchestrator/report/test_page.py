"""The report, from results that a real fusion made, and in a real browser."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from fusion.search import fuse
from orchestrator.fuse.result import describe, described_table
from orchestrator.fuse.standalone import fuse_tables
from orchestrator.report.collect import collect
from orchestrator.report.page import write_report
from orchestrator.report.sound import most_wrong
from scoring.errors import InputError
from scoring.metrics import official_metrics
from scoring.table import conform, read_table, write_table
from tests.tables import make_table

MACHINES = ("fan", "pump", "valve")
NAMES = {"a0": "attentive/arcface/0", "a1": "attentive/arcface/1", "b0": "bands/softmax/0", "c0": "bands/<lora>/0"}
TREE = {"attentive": {"arcface": ["a0/m", "a1/m"]}, "bands": {"softmax": ["b0/m"], "<lora>": ["c0/m"]}}
FIGURES = 2 * 3  # of each system


def add_system(out, name, tree=TREE, machines=(), baseline=False, **tables):
    """A system as `tutti run` leaves it, of small tables, beside a baseline."""
    used = [table for c in tree.values() for seeds in c.values() for table in seeds]
    made = {table: make_table(machines or MACHINES, per_cell=8, seed=i, **tables) for i, table in enumerate(used)}
    fusion = fuse(made, tree)
    folder = out / "systems" / name
    folder.mkdir(parents=True)
    checksum = write_table(fusion.table, folder / "fused.parquet")
    if fusion.held_out is not None:
        write_table(fusion.held_out, folder / "held_out.parquet")
    about = {
        "system": name,
        "spec": {},
        "description": "of <b>tests</b>",
        "dataset": "abc",
        "missing": [],
        "baseline": add_baseline(out, machines or MACHINES) if baseline else None,
        "branches": [described_table(t, NAMES[t.partition("/")[0]], "m", table) for t, table in made.items()],
    }
    result = about | describe(fusion) | {"sha256": checksum, "made": {}}
    (folder / "result.json").write_text(json.dumps(result))
    return result


def add_baseline(out, machines):
    table = make_table(machines, per_cell=8, seed=9)
    (out / "branches" / "b9" / "tables").mkdir(parents=True, exist_ok=True)
    write_table(table, out / "branches" / "b9" / "tables" / "m.parquet")
    return {"name": "log-mel baseline", "table": "b9/m", **official_metrics(table).as_dict()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    add_system(out, "one", {"attentive": {"arcface": ["a0/m"]}}, baseline=True)
    add_system(out, "two", baseline=True)
    write_report(out)
    return out


class Page(HTMLParser):
    """Counts elements, and finds what a page would load from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.counts, self.loads = {}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.loads += [value for name, value in attributes if name in ("src", "href", "xlink:href")]


def test_everything_is_there_in_one_file(run):
    text = (run / "report.html").read_text()
    page = Page(text)
    assert page.counts["svg"] == page.counts["figcaption"] == FIGURES
    assert all(link.startswith(("#", "data:")) for link in page.loads)
    assert "script" not in page.counts
    assert "<b>tests" not in text
    assert "None" not in text
    assert "nan" not in re.findall(r">([^<]*)<", text)
    for heading in ("Systems", "System one", "System two", "Branches"):
        assert f">{heading}</h2>" in text


def test_the_best_of_a_row_is_bold_with_its_interval(run):
    results = [json.loads((run / "systems" / name / "result.json").read_text()) for name in ("one", "two")]
    row = re.search(r'<tr class="total"><td>Omega</td>(.*)</tr>', (run / "report.html").read_text())[1]
    cells = re.findall(r"<td( class=\"best\")?>([\d.]+)<small>([\d.]+) – ([\d.]+)</small></td>", row)
    expected = [result["delivered"][kind] for result in results for kind in ("in_sample", "lomo")]
    assert [cell[1] for cell in cells] == [f"{value:.2f}" for value in expected]
    for i in range(2):
        best = max(expected[i], expected[i + 2])
        assert [bool(cell[0]) for cell in cells[i::2]] == [value == best for value in expected[i::2]]
    for _, value, low, high in cells:
        assert float(low) <= float(value) + 0.05
        assert float(value) - 0.05 <= float(high)


def test_branches_and_configurations_stand_in_coloured_tables(run):
    text = (run / "report.html").read_text()
    alike, branches = re.findall(r'<table class="heat">(.*?)</table>', text, re.DOTALL)
    assert re.findall("<th>(.*?)</th>", branches) == ["", *MACHINES, "Omega"]
    omegas = [float(value) for value in re.findall(r"([\d.]+)</td></tr>", branches)]
    assert len(omegas) == len(set(NAMES)) == 4
    assert omegas == sorted(omegas, reverse=True)
    assert "bands/&lt;lora&gt;/0 m" in branches
    assert alike.count(">1.00</td>") == 3
    assert all(low != high for low, high in re.findall('background: (.*?); color: (.*?)"', alike + branches))


def test_the_same_results_give_the_same_page(run):
    before = (run / "report.html").read_bytes()
    assert write_report(run).read_bytes() == before


def test_the_page_opens_with_a_verdict(run):
    text = (run / "report.html").read_text()
    opening = " ".join(
        re.sub("<[^>]*>", " ", text[text.index('<section class="verdict">') : text.index("</section>")]).split()
    )
    results = {name: json.loads((run / "systems" / name / "result.json").read_text()) for name in ("one", "two")}
    best = max(results, key=lambda name: results[name]["delivered"]["lomo"])
    other = min(results, key=lambda name: results[name]["delivered"]["lomo"])
    omega = {name: result["delivered"]["lomo"] for name, result in results.items()}
    assert opening.startswith(f"{best} reaches {omega[best]:.1f} % on held-out machines")
    baseline = official_metrics(make_table(MACHINES, per_cell=8, seed=9)).omega
    gain = re.search(r"the log-mel baseline ([+−][\d.]+)", opening)[1]
    assert float(gain.replace("−", "-")) == pytest.approx(omega[best] - baseline, abs=0.006)
    difference = re.search(rf"system {other} ([+−][\d.]+) ([+−][\d.]+) to ([+−][\d.]+)", opening)
    gain, low, high = (float(value.replace("−", "-")) for value in difference.groups())
    assert gain == pytest.approx(omega[best] - omega[other], abs=0.006)
    assert low <= gain <= high
    assert f"tutti export {run} {best} --out model" in opening
    assert text.index("leave-one-machine-out") < text.index("<th>LOMO")


def test_a_single_machine_is_compared_with_the_baseline(tmp_path):
    result = add_system(tmp_path, "one", {"attentive": {"arcface": ["a0/m"]}}, ["fan"], baseline=True)
    baseline = official_metrics(make_table(["fan"], per_cell=8, seed=9)).omega
    row = re.search(r"<tr><td>the log-mel baseline</td>.*", write_report(tmp_path).read_text())[0]
    gain, over_machines = re.search(r"<strong>([+−][\d.]+)</strong></td><td>[^<]*</td><td>([^<]*)</td>", row).groups()
    assert float(gain.replace("−", "-")) == pytest.approx(result["delivered"]["in_sample"] - baseline, abs=0.006)
    assert over_machines == "–"  # one machine says nothing of others


def test_who_writes_a_result_removes_the_report(tmp_path):
    """Else it would be of other results; a fusion that finds its own leaves it."""
    out = tmp_path / "fused"
    for i in range(2):
        (tmp_path / "tables").mkdir(exist_ok=True)
        write_table(make_table(MACHINES, per_cell=8, seed=i), tmp_path / "tables" / f"t{i}.parquet")
        fuse_tables(tmp_path / "tables", out)
        assert not (out / "report.html").exists()
        write_report(out)
        fuse_tables(tmp_path / "tables", out)
        assert (out / "report.html").exists()


def test_the_most_wrong_clips_can_be_heard(run, tmp_path):
    table = read_table(run / "systems" / "two" / "fused.parquet")
    for machine, split, clip in zip(*(table[name].to_pylist() for name in ("machine", "split", "clip")), strict=True):
        folder = tmp_path / machine / split
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / clip, np.random.default_rng(0).normal(size=(4000, 2)) / 10, 16_000)
    _, two = collect(run)[0]
    recordings = most_wrong(two, 2, tmp_path)
    assert [r.mistake for r in recordings] == ["false alarm", "false alarm", "miss", "miss"]
    rows = table.to_pylist()
    for mistake, condition, worst in (("false alarm", "normal", max), ("miss", "anomaly", min)):
        scores = [row["calibrated"] for row in rows if row["split"] == "test" and row["condition"] == condition]
        assert next(r.score for r in recordings if r.mistake == mistake) == worst(scores)
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(recordings[0].sound.partition("base64,")[2])))
    assert (len(samples), rate) == (4000, 16_000)
    page = Page(write_report(run, audio=1, data=tmp_path).read_text())
    assert page.counts["audio"] == page.counts["img"] == 4
    assert all(link.startswith(("#", "data:")) for link in page.loads)
    write_report(run)
    with pytest.raises(InputError, match="name their data set with --data"):
        most_wrong(two, 1, tmp_path / "nowhere")


def test_without_labels_sentences_stand_for_figures(tmp_path):
    add_system(tmp_path, "blind", labelled=False)
    text = write_report(tmp_path).read_text()
    assert "No test clip has a known condition" in text
    assert "No ROC curves" in text
    assert Page(text).counts["svg"] == 2  # weights and scores
    assert "None" not in text


def test_a_machine_without_target_clips_and_one_with_sections(tmp_path):
    source = make_table(("fan",), per_cell=8)
    source = source.filter(pa.compute.equal(source["domain"], "source"))
    table = conform(pa.concat_tables([source, make_table(("pump",), section=1)]))
    fusion = fuse({"a0/m": table}, {"x": {"y": ["a0/m"]}})
    branches = [described_table("a0/m", "x/y/0", "m", table)]
    folder = tmp_path / "systems" / "odd"
    folder.mkdir(parents=True)
    write_table(fusion.table, folder / "fused.parquet")
    write_table(fusion.held_out, folder / "held_out.parquet")
    about = {"system": "odd", "dataset": "abc", "branches": branches}
    (folder / "result.json").write_text(json.dumps(about | describe(fusion) | {"made": {}}))
    text = write_report(tmp_path).read_text()
    assert ">pump 01</text>" in text
    assert "<td>–" in text


@pytest.mark.parametrize("table", ["fused.parquet", "held_out.parquet"])
def test_a_damaged_table_is_named_with_the_remedy(run, tmp_path, table):
    out = tmp_path / "copy"
    shutil.copytree(run, out)
    folder = out / "systems" / "two"
    (folder / table).write_bytes((folder / table).read_bytes()[:100])
    with pytest.raises(InputError, match=rf"{table}: not a readable Parquet file.*; remove {folder} and run the same"):
        write_report(out)


def test_labels_of_normal_clips_alone_measure_nothing(tmp_path, monkeypatch):
    tables = {seed: make_table(MACHINES, per_cell=8, seed=seed) for seed in (0, 1, 2, 3, 9)}
    normals = {i: t.filter(pa.compute.not_equal(t["condition"], "anomaly")) for i, t in tables.items()}
    monkeypatch.setattr(sys.modules[__name__], "make_table", lambda *_, seed, **__: normals[seed])
    for name in ("one", "two"):
        add_system(tmp_path, name, baseline=True)
    text = write_report(tmp_path).read_text()
    assert "Nothing could be measured" in text
    assert "Difference in Omega" not in text


def test_a_lost_baseline_and_other_data_are_said(run, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(run, out)
    table = out / "branches" / "b9" / "tables" / "m.parquet"
    table.unlink()
    result = out / "systems" / "one" / "result.json"
    result.write_text(result.read_text().replace('"dataset": "abc"', '"dataset": "def"'))
    text = write_report(out).read_text()
    assert f"{table}: no such score table. System one is not compared with the log-mel baseline." in text
    assert "<td>the log-mel baseline</td>" not in text
    assert "different data sets" in text


def test_a_report_needs_results(tmp_path):
    with pytest.raises(InputError, match="no results to report"):
        write_report(tmp_path)


def test_a_damaged_result_is_named(tmp_path):
    (tmp_path / "systems" / "mine").mkdir(parents=True)
    (tmp_path / "systems" / "mine" / "result.json").write_text('{"x":')
    with pytest.raises(InputError, match=r"mine/result.json: no result of a fusion, damaged"):
        write_report(tmp_path)


MEASURE = """<script>
addEventListener("load", () => {
  const drawn = [...document.querySelectorAll("svg")].map(svg => {
    const box = svg.getBoundingClientRect(), content = svg.getBBox();
    const texts = [...svg.querySelectorAll("text")].map(text => text.getBoundingClientRect());
    const outside = texts.filter(t => t.left < box.left - 2 || t.right > box.right + 2).length;
    const shapes = svg.querySelectorAll("path, use, image, text").length;
    return [svg.getAttribute("aria-label"), box.width, content.width, shapes, outside];
  });
  document.body.textContent = JSON.stringify(drawn);
});
</script>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_a_browser_shows_every_figure(run, tmp_path):
    page = tmp_path / "measured.html"
    page.write_text((run / "report.html").read_text() + MEASURE)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"]
    command = ["chromium", *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in shown.stderr
    drawn = json.loads(
        re.search(r"<body>(.*)</body>", shown.stdout, re.DOTALL)[1].replace("&lt;", "<").replace("&gt;", ">")
    )
    assert len(drawn) == FIGURES
    for label, width, content, shapes, outside in drawn:
        assert label
        assert np.isfinite([width, content]).all()
        assert min(width, content) > 100, label
        assert shapes > 10, label
        assert outside == 0, label


def test_ground_truth_that_came_later_is_shown_and_changes_nothing(tmp_path):
    result = add_system(tmp_path, "hidden", labelled=False)
    before = (tmp_path / "systems" / "hidden" / "fused.parquet").read_bytes()
    labels = make_table(MACHINES, per_cell=8)
    labels = labels.filter(pa.compute.equal(labels["split"], "test"))
    for kind, column, one in (("data", "condition", "anomaly"), ("domain", "domain", "target")):
        (tmp_path / f"ground_truth_{kind}").mkdir()
        for machine in MACHINES:
            rows = labels.filter(pa.compute.equal(labels["machine"], machine)).to_pylist()
            text = "".join(f"{row['clip']},{int(row[column] == one)}\n" for row in rows)
            (tmp_path / f"ground_truth_{kind}" / f"ground_truth_{machine}_section_00_test.csv").write_text(text)
    page = write_report(tmp_path, ground_truth=tmp_path).read_text()
    assert "With ground truth that came later" in page
    assert "ROC curves by the ground truth" in page
    assert (tmp_path / "systems" / "hidden" / "fused.parquet").read_bytes() == before
    assert result["delivered"]["in_sample"] is None
    assert "With ground truth that came later" not in write_report(tmp_path).read_text()
