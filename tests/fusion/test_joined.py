import numpy as np
import pyarrow as pa
import pytest

from fusion.joined import Joined, apply_weights
from fusion.scales import on_scale
from scoring.calibration import calibrate, transductive_normalisation
from scoring.errors import InputError
from scoring.table import conform, metadata_of
from tests.fusion.pools import make_pool
from tests.tables import make_table

WEIGHTS = {"g0": 0.5, "g1": 0.0, "p0": 0.2, "o0": 0.3}


@pytest.fixture(scope="module")
def tables():
    return make_pool(per_cell=5)


def test_a_fused_table_is_the_weighted_sum_calibrated_anew(tables):
    fused = apply_weights(tables, WEIGHTS, {"x": "y"})
    score = sum(w * tables[name]["calibrated"].to_numpy() for name, w in WEIGHTS.items())
    assert fused["score"].to_numpy() == pytest.approx(score)
    assert fused["calibrated"].to_numpy() == pytest.approx(calibrate(fused, score))
    assert fused.drop_columns(["score", "calibrated"]).equals(tables["g0"].drop_columns(["score", "calibrated"]))
    assert metadata_of(fused) == {"x": "y"}


def test_neither_labels_nor_the_order_of_rows_nor_tables_without_weight_have_a_say(tables):
    nothing, order = pa.nulls(len(tables["g0"]), pa.string()), np.arange(len(tables["g0"]))[::-1]
    hidden = {
        name: table.set_column(5, "condition", nothing).set_column(4, "domain", nothing).take(order)
        for name, table in tables.items()
        if name != "g1"
    }
    known, unknown = apply_weights(tables, WEIGHTS), apply_weights(hidden, WEIGHTS)
    assert unknown.select(["clip", "score", "calibrated"]).equals(known.select(["clip", "score", "calibrated"]))
    assert unknown["condition"].null_count == len(unknown)


def test_tables_have_to_agree_on_what_is_asked_of_them(tables):
    normal = tables["o0"].set_column(5, "condition", pa.array(["normal"] * len(tables["o0"])))
    assert apply_weights({**tables, "o0": normal}, WEIGHTS).equals(apply_weights(tables, WEIGHTS))
    with pytest.raises(InputError, match=r"the condition of source_anomaly_0000.wav is anomaly in g0 and normal in o0"):
        Joined.read({**tables, "o0": normal}, tables, ["domain", "condition"])
    with pytest.raises(InputError, match=r"o0 lacks fan/test/source_anomaly_0000.wav .* and 0 more that g0 has"):
        Joined.read({**tables, "o0": tables["o0"].slice(1)}, tables)


def test_a_rank_is_the_share_of_its_machines_training_clips_below_a_tie_counting_half():
    table = conform(pa.concat_tables([make_table(train=10), make_table(["fan"], 3, 7, section=1)]))
    machine, section, split = (table[name].to_numpy() for name in ("machine", "section", "split"))
    score = table["score"].to_numpy().round(1)
    expected = []
    for i in range(len(table)):
        train = score[(machine == machine[i]) & (section == section[i]) & (split == "train")]
        expected.append(np.mean((train < score[i]) + (train == score[i]) / 2))
    assert on_scale("rank", table, np.stack([-score, score]))[1].tolist() == pytest.approx(expected)
    assert on_scale("calibrated", table, score) is score


def test_clips_of_transductive_tables_rank_each_other():
    table = transductive_normalisation(make_table(("fan",), train=0))
    (ranks,) = on_scale("rank", table, table["score"].to_numpy()[None])
    assert sorted(ranks) == pytest.approx((np.arange(24) + 0.5) / 24)
