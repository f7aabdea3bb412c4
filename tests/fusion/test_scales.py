import numpy as np
import pyarrow as pa
import pytest

from fusion.scales import on_scale
from scoring.calibration import transductive_normalisation
from scoring.table import conform
from tests.tables import make_table


def ranks(table):
    return on_scale("rank", table, table["score"].to_numpy()[None])[0]


def test_a_rank_is_the_share_of_training_clips_below():
    table = make_table(("fan",), 6, 10)
    train = table["split"].to_numpy() == "train"
    score = table["score"].to_numpy()
    expected = [((score[train] < s).sum() + (score[train] == s).sum() / 2) / 10 for s in score]
    assert ranks(table) == pytest.approx(np.array(expected))
    assert on_scale("calibrated", table, score) is score


def test_test_clips_do_not_rank_each_other():
    table = make_table(("fan",), 6, 10)
    few = (table["split"].to_numpy() == "train") | (np.arange(len(table)) == 0)
    alone = conform(table.filter(pa.array(few)))
    assert ranks(table)[few] == pytest.approx(ranks(alone))


def test_transductive_tables_have_ranks_too():
    table = make_table(("fan",), 6)
    test_rows = transductive_normalisation(table.filter(pa.compute.equal(table["split"], "test")))
    assert sorted(ranks(test_rows)) == pytest.approx((np.arange(24) + 0.5) / 24)
