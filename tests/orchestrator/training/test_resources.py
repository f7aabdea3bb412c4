"""Memory that is set aside: a share, what was measured, and more after a kill."""

from dataclasses import replace
from types import SimpleNamespace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.capacity import GIB
from orchestrator.training.resources import Demand, Measure, note_peak, read_peaks

CONFIGS = {"a0": "a", "a1": "a", "b0": "b"}


def demand(folder, **fixed):
    return Demand({"CPU": 1.0, **fixed}, 4.0 * GIB, 16.0 * GIB, folder / "memory.json", CONFIGS)


def of(branch_id, part="all"):
    return {"branch_id": branch_id, "part": part}


def memory(request):
    return round(request.required_resources.get("memory", 0) / GIB, 3)


def finished(branch_id, **result):
    return SimpleNamespace(config={"branch_id": branch_id}, last_result=result)


def test_a_share_until_a_configuration_needs_more(tmp_path):
    asked = demand(tmp_path)
    assert asked(of("a0")).required_resources == {"CPU": 1, "memory": 4 * GIB}
    Measure(asked).on_trial_complete(0, [], finished("a0", memory_gib=2.0))
    assert [memory(asked(of(name))) for name in ("a1", "b0")] == [4, 4]
    Measure(asked).on_trial_complete(0, [], finished("b0", memory_gib=4.0))
    Measure(asked).on_trial_complete(0, [], finished("b0", failure="of its own"))
    assert [memory(asked(of(name))) for name in ("a1", "b0")] == [2.5, 4.5]
    assert memory(demand(tmp_path)(of("a0"))) == 2.5  # of a later run
    assert memory(demand(tmp_path, memory=3.0 * GIB)(of("a1"))) == 3


def test_scores_alone_need_no_gpu(tmp_path):
    asked = demand(tmp_path, GPU=1.0)
    assert asked(of("a0", "embeddings")).required_resources == {"CPU": 1, "GPU": 1, "memory": 4 * GIB}
    assert asked(of("a0", "scores")).required_resources == {"CPU": 1, "memory": 4 * GIB}


def test_the_share_of_what_has_not_been_measured(tmp_path):
    note_peak(tmp_path / "memory.json", "of another run", 9.0)
    assert memory(demand(tmp_path)(of("b0"))) == 4
    note_peak(tmp_path / "memory.json", "b", 9.0)
    assert [memory(demand(tmp_path)(of(name))) for name in ("a1", "b0")] == [4, 10]


def test_no_more_than_a_node_has_is_asked_for(tmp_path):
    note_peak(tmp_path / "memory.json", "a", 15.9)
    assert memory(demand(tmp_path)(of("a0"))) == 16


def test_more_after_a_kill_but_not_more_than_there_is(tmp_path):
    asked = [memory(replace(demand(tmp_path), scale=scale)(of("a0"))) for scale in (1, 2, 4, 8)]
    assert asked == [4, 8, 16, 16]


def test_a_full_disk_is_no_reason_to_end_a_run(tmp_path, caplog):
    nowhere = replace(demand(tmp_path), measured=tmp_path / "none" / "memory.json")
    Measure(nowhere).on_trial_complete(0, [], finished("a0", memory_gib=2.0))
    assert "No such file" in caplog.text


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0.001, 100)), max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_the_largest_peak_is_kept(tmp_path, peaks):
    path = tmp_path / "peaks.json"
    path.unlink(missing_ok=True)
    for config, peak in peaks:
        note_peak(path, config, peak)
    expected = {config: max(p for c, p in peaks if c == config) for config, _ in peaks}
    assert read_peaks(path) == {c: round(p, 3) for c, p in expected.items()}
    path.write_text("{half")
    assert read_peaks(path) == {}
