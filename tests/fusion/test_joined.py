import numpy as np
import pyarrow as pa
import pytest

from fusion.joined import Joined, apply_weights
from scoring.errors import InputError
from scoring.metrics import official_metrics
from scoring.table import conform, metadata_of
from tests.fusion.pools import MACHINES, make_pool
from tests.tables import make_table

WEIGHTS = {"g0": 0.5, "g1": 0.0, "p0": 0.2, "o0": 0.3}


def test_labels_change_nothing_in_a_fused_table():
    """The same clips with their labels and without them."""
    known = make_pool(per_cell=5)
    nothing = pa.nulls(len(known["g0"]), pa.string())
    hidden = {n: t.set_column(5, "condition", nothing).set_column(4, "domain", nothing) for n, t in known.items()}
    with_labels, without = (apply_weights(tables, WEIGHTS, {"x": "y"}) for tables in (known, hidden))
    assert with_labels["score"].equals(without["score"])
    assert with_labels["calibrated"].equals(without["calibrated"])
    assert without["condition"].null_count == len(without)
    assert metadata_of(with_labels) == {"x": "y"}
    assert official_metrics(with_labels).omega > 50


def test_tables_without_weight_need_not_be_there():
    tables = make_pool(per_cell=5)
    whole = apply_weights(tables, WEIGHTS)
    del tables["g1"]
    assert apply_weights(tables, WEIGHTS).equals(whole)


def test_the_order_of_rows_does_not_matter():
    tables = make_pool(per_cell=5)
    turned = {name: table.take(np.arange(table.num_rows)[::-1]) for name, table in tables.items()}
    assert apply_weights(turned, WEIGHTS).equals(apply_weights(tables, WEIGHTS))


def test_what_does_not_fit_is_named():
    tables = make_pool(per_cell=5)
    with pytest.raises(InputError, match="no score table for x"):
        Joined.read(tables, ["g0", "x"])
    with pytest.raises(InputError, match="has no machine valve"):
        Joined.read({**tables, "o0": make_table(MACHINES[:2], 5, 40)}, tables)
    lost = tables["o0"].filter(pa.array(np.arange(len(tables["o0"])) != 4))
    with pytest.raises(InputError, match=r"o0 lacks fan/test/source_anomaly_0004.wav .* and 0 more that g0 has"):
        Joined.read({**tables, "o0": lost}, tables)
    with pytest.raises(InputError, match="is in the table more than once"):
        Joined.read({**tables, "o0": pa.concat_tables([tables["o0"], tables["o0"].slice(0, 1)])}, tables)
    normal = conform(tables["o0"].set_column(5, "condition", pa.array(["normal"] * len(tables["o0"]))))
    with pytest.raises(InputError, match=r"the condition of source_anomaly_0000.wav is anomaly in g0 and normal in o0"):
        Joined.read({**tables, "o0": normal}, tables, ["domain", "condition"])
    assert apply_weights({**tables, "o0": normal}, WEIGHTS).equals(apply_weights(tables, WEIGHTS))
