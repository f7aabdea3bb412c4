import re

import matplotlib
import numpy as np
import pyarrow as pa
import pytest

from orchestrator.report import figures
from scoring.decisions import thresholds
from tests.tables import make_table


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


def test_text_stands_out_from_its_cell():
    def luminance(colour):
        r, g, b = (
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in matplotlib.colors.to_rgb(colour)
        )
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    for value in np.linspace(0, 1, 50):
        colours = re.findall(r"color: ([^;]*)", figures.shade(value, 0, 1).replace("background:", "color:"))
        dark, light = sorted(map(luminance, colours))
        assert (light + 0.05) / (dark + 0.05) > 3.9
