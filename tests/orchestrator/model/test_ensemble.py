"""Whatever the members are: a packaged ensemble computes what scoring and fusion compute of whole tables."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from branches.audio import read_clip
from fusion.joined import apply_weights
from fusion.scales import SCALES
from orchestrator.ledger.folders import read_finished
from orchestrator.model.manifest import Manifest, Member
from orchestrator.model.reference import Reference
from scoring.banks import score_table
from scoring.decisions import thresholds
from scoring.errors import InputError
from tests.finished import contributions

DETECTORS = [
    {"name": "mahalanobis"},
    {"name": "knn"},
    {"name": "knn", "k": 2, "density": "ratio"},
    {"name": "band_knn"},
    {"name": "band_knn", "banks": "pooled", "density": {"name": "difference", "weight": "fitted"}, "bands": "maximum"},
    {"name": "mahalanobis", "standardised": True},
]
SOURCES = ["a", "b"]
MEMBER = st.tuples(st.sampled_from(DETECTORS), st.sampled_from("ab"), st.floats(0.1, 3))


def made(drawn, scale, source, target, test, seed):
    """Of one machine members, training clips of two domains, test clips of a hidden one, embeddings, the reference."""
    members = [
        Member(branch_id=branch, name=f"{i}", detector=detector, weight=weight)
        for i, (detector, branch, weight) in enumerate(drawn)
    ]
    train, rows = source + target, source + target + test
    columns = {"machine": ["fan"] * rows, "section": [0] * rows, "clip": [f"{i:03d}" for i in range(rows)]}
    columns["split"] = ["train"] * train + ["test"] * test
    columns["domain"] = pa.array(["source"] * source + ["target"] * target + [None] * test, pa.string())
    clips = pa.table({**columns, "condition": pa.nulls(rows, pa.string())})
    rng = np.random.default_rng(seed)
    embeddings = {name: rng.normal(size=(rows, 8, 2)).astype(np.float32) for name in SOURCES}
    manifest = Manifest(scale=scale, members=members, branches={}, normals=[])
    of_normals = {name: X[:train] for name, X in embeddings.items()}
    return members, clips, embeddings, Reference.fit(manifest, clips[:train], of_normals)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(MEMBER, min_size=1, max_size=4),
    st.sampled_from(SCALES),
    *(st.integers(*limits) for limits in ((6, 20), (0, 5), (1, 6), (0, 99))),
)
def test_it_is_the_fused_table_and_each_score_stands_alone(drawn, scale, source, target, test, seed):
    members, clips, embeddings, reference = made(drawn, scale, source, target, test, seed)
    tables = {m.name: score_table(clips, embeddings[m.source], m.detector, {}) for m in members}
    fused = apply_weights(tables, {m.name: m.weight for m in members}, scale=scale)
    is_test = fused["split"].to_numpy() == "test"
    others = {name: X[source + target :] for name, X in embeddings.items()}
    found = reference.score(others)
    for name in ("score", "calibrated"):
        assert found[name].to_numpy() == pytest.approx(fused[name].to_numpy()[is_test])
    assert reference.train_scores == pytest.approx(fused["score"].to_numpy()[~is_test])
    assert reference.threshold == pytest.approx(thresholds(fused)["fan", 0])
    assert contributions(found).sum(axis=0) == pytest.approx(found["score"].to_numpy())
    alone = [reference.score({name: X[i : i + 1] for name, X in others.items()})["score"][0] for i in range(test)]
    assert found["score"].to_numpy() == pytest.approx([score.as_py() for score in alone])
    reference.threshold = found["score"].to_numpy().max()  # what is just at the threshold is no anomaly
    assert not any(reference.score(others)["anomaly"].to_pylist())


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda d: "-".join(map(str, d.values())))
def test_three_clips_of_an_enrolled_machine_are_enough_and_two_are_not(detector):
    *_, embeddings, reference = made([(detector, "a", 1.0)], "calibrated", 3, 0, 4, 1)
    assert np.isfinite(reference.score({SOURCES[0]: embeddings[SOURCES[0]][3:]})["score"].to_numpy()).all()
    with pytest.raises(InputError, match="2 training clips; scoring needs at least 3"):
        made([(detector, "a", 1.0)], "calibrated", 2, 0, 4, 1)


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["rotor", "pump"])
def test_an_exported_system_says_of_clips_what_the_run_said(run, ensemble, machine):
    fused = run.fused(machine)
    found = ensemble.score(machine, [read_clip(path) for path in run.clips(machine)])
    assert [path.name for path in run.clips(machine)] == fused["clip"].to_pylist()
    for name in ("score", "calibrated"):
        assert found[name].to_numpy() == pytest.approx(fused[name].to_numpy(), abs=1e-5)
    members = ensemble.manifest.members
    named = {branch["branch"]: branch["table"] for branch in run.result["branches"]}
    assert {member.name for member in members} == named.keys()
    assert sum(member.weight for member in members) == pytest.approx(1)
    for member, contribution in zip(members, contributions(found), strict=True):
        table = read_finished(run.out, named[member.name])
        rows = table.filter((pc.field("machine") == machine) & (pc.field("split") == "test"))
        assert contribution == pytest.approx(member.weight * rows["calibrated"].to_numpy(), abs=1e-5)


@pytest.mark.slow
def test_an_open_model_has_fitted_references_and_merged_adapters(ensemble):
    """What would cost time with every recording."""
    assert ensemble.reference("rotor") is ensemble.reference("rotor")
    networks = [network for network, _ in ensemble._networks]
    assert any(network.spec.strategy.name == "lora" for network in networks)
    assert not any("lora" in name for network in networks for name, _ in network.named_parameters())


@pytest.mark.slow
def test_a_batch_scores_as_its_clips_one_by_one_and_one_whose_level_is_absurd_is_told(run, ensemble):
    """Also where clips of other lengths, which are padded together, are in the batch."""
    clips = [read_clip(path) for path in run.clips("rotor")]
    clips += [clip[:9000] for clip in clips[:3]] + [np.tile(clips[0], (3, 1))]
    together = ensemble.score("rotor", clips)["score"].to_numpy()
    alone = [ensemble.score("rotor", [clip])["score"].to_pylist() for clip in clips]
    assert together == pytest.approx(np.concatenate(alone), abs=1e-5)
    backwards = ensemble.score("rotor", clips[::-1])["score"].to_numpy()
    assert backwards[::-1] == pytest.approx(together, abs=1e-5)
    with pytest.raises(InputError, match="gives an embedding that is not finite: the level is absurd"):
        ensemble.score("rotor", [np.full((16_000, 1), 1e30, np.float32)])
