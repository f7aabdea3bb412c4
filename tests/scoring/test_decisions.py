import numpy as np
import pytest

from scoring.decisions import gamma_threshold, thresholds
from tests.tables import make_table


@pytest.mark.parametrize("skewed", [True, False])
def test_threshold_lets_about_a_tenth_of_the_normals_through(skewed):
    rng = np.random.default_rng(5)
    draw = (lambda n: rng.gamma(3.0, 2.0, n) - 4) if skewed else (lambda n: rng.normal(7, 0.1, n))
    assert (draw(20_000) > gamma_threshold(draw(5_000))).mean() == pytest.approx(0.1, abs=0.015)


def test_thresholds_come_from_training_rows_alone():
    table = make_table()
    high = table["score"].to_numpy() + 100.0 * (table["split"].to_numpy() == "test")
    assert thresholds(table.set_column(6, "score", [high])) == thresholds(table)
