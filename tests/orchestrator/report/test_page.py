"""The report of results that a real fusion made, also as a browser shows it."""

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
from orchestrator.fuse.result import describe, described_table
from orchestrator.report.collect import collect
from orchestrator.report.page import write_report
from scoring.bootstrap import bootstrap_intervals
from scoring.decisions import thresholds
from scoring.errors import InputError
from scoring.metrics import official_metrics
from scoring.table import read_table, write_table
from tests.orchestrator.package_case import write_truth
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
    """A system as `tutti run` leaves it, of small tables, maybe beside a baseline."""
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
    """Two systems of a run, their results and the report's text."""
    out, baseline = tmp_path_factory.mktemp("run"), make_table(MACHINES, per_cell=8, seed=9)
    some = {"one": {"a0/m": TABLES["a0/m"]}, "two": TABLES}
    results = {name: add_system(out, name, tables, baseline) for name, tables in some.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.report.collect.DEVELOPMENT_SET", set(MACHINES))
        yield out, results, write_report(out).read_text()


def number(text):
    return float(text.replace("−", "-"))


def test_everything_is_there_in_one_file(run):
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


def test_a_system_has_one_figure_beside_the_baseline_and_the_best_of_a_row_is_bold(run):
    out, results, text = run
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
    words = re.sub("<[^>]*>", " ", text)
    assert [word for word in ("beats", "strength kept") if word in words] == []


def test_the_page_opens_with_a_verdict(run):
    out, results, text = run
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
    """A machine without target clips, one with sections; and labels of normal clips alone."""
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
  const shown = [...document.querySelectorAll("svg")].map(svg => {
    const box = svg.getBoundingClientRect(), texts = [...svg.querySelectorAll("text")];
    const places = texts.map(text => text.getBoundingClientRect());
    const inside = places.every(place => place.left > box.left - 2 && place.right < box.right + 2);
    return inside && Math.min(box.width, svg.getBBox().width) > 100;
  });
  document.body.textContent = JSON.stringify(shown);
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
