import hashlib
import io
import zipfile

import pytest

from branches import downloads
from branches.data import fetching
from tests.commands import tutti_here
from tests.web import serving

DEV, ADDITIONAL, EVAL = (f"/api/records/{record}" for record in fetching.RECORDS["dcase2026"])
NAMES = {
    "dev_data_ToyCar.zip": "ToyCar",
    "eval_data_train_ToyCar.zip": "ToyCar",
    "eval_data_fan_test.zip": "fan",
    "dev_ToyCar_r2.zip": "ToyCar",
    "3DPrinter_train_r2.zip": "3DPrinter",
    "eval_data_2023_bandsaw_test.zip": "bandsaw",
    "additional_data_2025_Polisher_train.zip": "Polisher",
    "dev_data.zip": "",
}


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSES", (0.01, 0.02))
    with serving() as server:
        monkeypatch.setenv("ZENODO_ENDPOINT", server.url)
        server.files = {EVAL: {"files": []}}
        yield server


def add(web, record, name, files):
    """An archive of a record."""
    with zipfile.ZipFile(content := io.BytesIO(), "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    web.files[f"/{name}"] = content = content.getvalue()
    about = {"key": name, "size": len(content), "checksum": f"md5:{hashlib.md5(content).hexdigest()}"}
    web.files.setdefault(record, {"files": []})["files"].append({**about, "links": {"self": f"{web.url}/{name}"}})


def test_machines_are_read_from_the_names_of_every_year():
    assert {name: fetching._archive({"key": name, "checksum": "", "size": 1}, "").machine for name in NAMES} == NAMES


def test_a_data_set_is_fetched_goes_on_after_a_cut_and_is_checked(web, dataset, tmp_path):
    train, test = ({p.name: p.read_bytes() for p in (dataset / "rotor" / part).iterdir()} for part in ("train", "test"))
    clips = {f"dev/fan/{part}/{n}": d for part, fs in (("train", train), ("test", test)) for n, d in fs.items()}
    add(web, DEV, "dev_fan.zip", {"fan/train/old.wav": b""})
    add(web, DEV, "dev_data_fan_r2.zip", {**clips, "__MACOSX/fan/train/._a.wav": b"", "../out/train/../../x.wav": b""})
    add(web, DEV, "README.pdf", {})
    add(web, ADDITIONAL, "eval_data_pump_train.zip", {f"train/{name}": data for name, data in train.items()})
    add(web, EVAL, "eval_data_pump_test.zip", {f"pump/test/{name}": data for name, data in test.items()})
    folder, web.kinds = tmp_path / "data", {"/dev_data_fan_r2.zip": "cut", "/eval_data_pump_test.zip": 503}
    first = tutti_here("data", "fetch", "dcase2026", folder)
    assert first.exit_code == 2
    assert "Error: 1 archive missing; the same command goes on: eval_data_pump_test.zip: cannot be" in first.stderr
    web.kinds = {}
    second = tutti_here("data", "fetch", "dcase2026", folder, "--keep")
    assert (second.exit_code, "3 archives, 1 to fetch" in second.stdout) == (0, True), second.stderr
    assert ("nothing that stops a run" in second.stderr, web.asked["/dev_fan.zip"]) == (True, 0)
    listed = {".archives", ".download.lock", "eval_data_pump_test.zip", "fan", "pump"}
    assert {path.name for path in folder.iterdir()} == listed
    assert {path.name for path in tmp_path.iterdir()} == {"data"}
    add(web, DEV, "dev_fan_r3.zip", {f"fan/train/{name}": data for name, data in train.items()})
    assert tutti_here("data", "fetch", "dcase2026", folder, "--machine", "fan").exit_code == 0
    assert not [*(folder / "fan" / "test").iterdir()]  # which the older archive held
    web.files["/api/records/7882613"] = web.files[DEV]
    assert "holds dcase2026" in tutti_here("data", "fetch", "dcase2023", folder, "--part", "dev", "--keep").stderr


def test_what_cannot_be_fetched_is_named(web, tmp_path):
    missing = tutti_here("data", "fetch", "dcase2026", tmp_path, "--part", "dev")
    assert (missing.exit_code, "no archives in dev" in missing.stderr) == (2, True), missing.stderr
    for content, message in (({"x": 1}, "is no record of Zenodo"), (b"<html>", "else than JSON")):
        web.files[DEV] = content
        refused = tutti_here("data", "fetch", "dcase2026", tmp_path, "--part", "dev")
        assert (refused.exit_code, refused.stderr.count("\n"), message in refused.stderr) == (2, 1, True), (
            refused.stderr
        )
    web.files[DEV] = {"files": []}
    add(web, DEV, "dev_fan.zip", {"notes.txt": b""})
    for arguments, message in (
        (("--machine", "pump"), "has no machine pump in dev; it has fan"),
        ((), "holds no <machine>"),
    ):
        refused = tutti_here("data", "fetch", "dcase2026", tmp_path, "--part", "dev", *arguments)
        assert (refused.exit_code, message in refused.stderr) == (2, True), refused.stderr
    (tmp_path / "dev_fan.zip").write_bytes(b"half")
    assert (
        "remove it, and it is fetched anew"
        in tutti_here("data", "fetch", "dcase2026", tmp_path, "--part", "dev").stderr
    )
    web.files[DEV]["files"][0]["size"] = 10**16
    assert "no room: 1 archive" in tutti_here("data", "fetch", "dcase2026", tmp_path, "--part", "dev").stderr
