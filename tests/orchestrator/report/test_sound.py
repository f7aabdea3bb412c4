import base64
import io

import numpy as np
import pytest
import soundfile

from orchestrator.report.collect import System
from orchestrator.report.sound import most_wrong
from scoring.errors import InputError
from tests.tables import make_table


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
