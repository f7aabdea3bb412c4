"""Weights that are chosen by given labels, what they are worth on machines that had no say, and what is delivered."""

import json
from dataclasses import asdict
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.session import session
from fusion import hierarchy, tasks
from fusion.complementarity import correlations, marginals
from fusion.evidence import validation_of
from fusion.joined import Joined, apply_weights
from fusion.methods import METHODS, best_single, greedy, softmax, to_point, to_weights, tpe
from fusion.omega import Omega
from fusion.resampling import compare
from fusion.scales import on_scale
from fusion.search import fuse
from fusion.tasks import run_here, sets_left_out
from fusion.validation import SINGLE, UNIFORM, Estimates
from scoring.bootstrap import bootstrap_intervals
from scoring.calibration import calibrate, transductive_normalisation
from scoring.errors import InputError
from scoring.metrics import LabelledCells, official_metrics
from scoring.table import REPORT_ONLY, conform, is_transductive, metadata_of
from tests.fusion.pools import MACHINES, TREE, labelled, make_pool, rng, tiny_systems, turned
from tests.tables import make_table

SCORES = labelled(make_pool())
PARTS = hierarchy.parts_of(TREE)
POOL = hierarchy.configurations_of(SCORES, TREE)
SAME = (60, 60, 60)
FAN = frozenset(["fan"])
GREEDY = ("greedy", "weak")
GOOD, POOR = np.array([[1, 0, 0], [0, 1, 0]])
# Four more members with errors of their own, and equal weights on both levels.
WIDE = {**TREE, "c": {f"n{i}": [f"n{i}"] for i in range(4)}}
EQUAL = np.array([2, 2, 4, 8, 2, 2, 2, 2]) / 24
TABLES = make_pool() | {f"n{i}": make_table(MACHINES, 40, 40, 0.9, seed=10 + i) for i in range(4)}


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_on_the_simplex_depend_on_the_seed_alone_and_beat_every_member_where_searched(method):
    """The strongest regularisation, which is nearest to uniform weights, comes first: of equals it is taken."""
    found, again = (METHODS[method].search(POOL, PARTS, rng(3)) for _ in range(2))
    uniform, weights = np.array([0.25, 0.25, 0.5]), np.stack([*found.values()])
    assert weights.sum(axis=1) == pytest.approx(1)
    assert weights.min() >= 0
    assert np.array_equal(weights, np.stack([*again.values()]))
    distances = np.abs(weights - uniform).sum(axis=1)
    assert distances.tolist() == sorted(distances)
    if method in ("greedy", "tpe", "evolution"):
        free = found["shrinkage 0.0"]
        assert POOL.omega(free) > POOL.omega(np.eye(3)).max()
        assert free[1] < 0.15  # knows nothing
        assert found["shrinkage 0.75"] == pytest.approx(0.25 * free + 0.75 * uniform)


def test_softmax_goes_from_the_best_to_uniform_greedy_takes_its_best_round_and_tpe_betters_its_starts(monkeypatch):
    omega = SCORES.omega(np.eye(4))
    assert best_single(SCORES, rng()).tolist() == (omega == omega.max()).tolist()
    assert softmax(SCORES, rng(), 1e-3) == pytest.approx(best_single(SCORES, rng()))
    assert softmax(SCORES, rng(), 2) == pytest.approx(np.exp(omega / 2) / np.exp(omega / 2).sum())
    assert SCORES.omega(tpe(SCORES, rng())) >= SCORES.omega(greedy(SCORES, rng()))
    poor = np.array([0.0, 0.0, 1.0, 0.0])
    monkeypatch.setattr("fusion.methods.STARTS", (lambda scores, rng: poor,))
    assert SCORES.omega(tpe(SCORES, rng())) > SCORES.omega(poor) + 5
    for seed in range(4):  # with members that know nothing, whose best round is seldom the last
        noise, chosen, rounds = SCORES.with_values(rng(seed).normal(size=(5, SCORES.values.shape[1]))), [], []
        for size in range(1, 21):
            omega = [float(noise.omega(np.bincount([*chosen, m], minlength=5) / size)) for m in range(5)]
            chosen.append(int(np.argmax(omega)))
            rounds.append(max(omega))
        assert noise.omega(greedy(noise, rng())) == pytest.approx(max(rounds))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_every_point_is_on_the_simplex_and_comes_back(point):
    weights = to_weights(np.array(point))
    assert weights.min() >= 0
    assert np.isclose(weights.sum(), 1)
    again = to_point(weights)
    assert 0 <= again.min() <= again.max() <= 1
    np.testing.assert_allclose(to_weights(again), weights, atol=1e-9)
    # The logarithm of uniform coordinates makes open members uniform on their simplex; those above 0.75 are closed.
    assert to_weights(0.75 * np.exp([-1.0, -3.0, 0.1])) == pytest.approx([0.25, 0.75, 0])


def test_weights_are_chosen_on_two_levels_that_multiply_and_come_apart_again():
    assert hierarchy.choose_weights(SCORES.part(slice(1, 4)), PARTS, rng(), best_single).tolist() == [1, 0, 0]
    tree = {"a": {"x": ["t", "u"], "y": ["v"]}, "b": {"z": ["v", "v", "w"]}}
    weights = hierarchy.product(np.array([0.7, 0.3]), [np.array([0.6, 0.4]), np.ones(1)])
    assert weights == pytest.approx([0.42, 0.28, 0.3])
    for some, expected in ((weights, [0.7, 0.3, 0.6, 0.4, 1]), (0 * weights, [0, 0, 0.5, 0.5, 1])):
        found, parts = hierarchy.factors(some, hierarchy.parts_of(tree))
        assert np.concatenate([found, *parts]) == pytest.approx(expected)
    assert hierarchy.by_subsystem(tree, weights) == {"a": {"x": weights[0], "y": weights[1]}, "b": {"z": weights[2]}}
    assert hierarchy.tables_of(tree) == ["t", "u", "v", "w"]
    assert weights @ hierarchy.averaging(tree, "tuvw") == pytest.approx([0.21, 0.21, 0.48, 0.1])
    needed = "at least one sub-system, and each sub-system a configuration"
    told = [({}, needed), ({"a": {"x": ["t"]}, "b": {}}, needed), ({"a": {"x": []}}, "x of sub-system a has no seeds")]
    for tree, message in told:
        with pytest.raises(InputError, match=message):
            hierarchy.tables_of(tree)


@given(st.sampled_from([["source", "target"], ["source"], ["target", None]]), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_the_official_metrics_come_out(domains, seed):
    """Of any number of clips, so that the limit of pAUC falls between normals; with ties; in blocks of any size."""
    random = rng(seed)
    per_cell, tied, block = (int(random.choice(of)) for of in (range(1, 10), range(4), (1, 100, 20_000)))
    table = make_table(("fan", "pump"), per_cell, 2)
    is_fan, drawn = table["machine"].to_numpy() == "fan", random.choice(domains, len(table))
    domain = pa.array(np.where(is_fan, drawn, table["domain"].to_numpy()), pa.string())
    kept = pa.array(random.random(len(table)) < (0.9 if per_cell > 3 else 1))
    table = table.set_column(4, "domain", domain).filter(kept)
    cells, values = LabelledCells.from_table(table), random.normal(size=(3, len(table)))
    values[:tied] = values[:tied].round()
    weights = np.concatenate([random.dirichlet(np.ones(3), size=(2, 3)), np.eye(3)[None].repeat(2, 0)], axis=1)
    with patch.multiple("fusion.omega", BLOCK=block, SUMMED=3 * block):
        ours = Omega(values, cells).cells(weights)
    assert ours.shape == (2, 6, 3, len(cells.machines))
    np.testing.assert_allclose(ours, cells.values(weights @ values))


def test_above_a_dozen_machines_groups_are_left_out_whose_labels_do_not_reach_their_scores(monkeypatch):
    machines = [f"m{i}" for i in range(30)]
    groups = tasks.groups_of(machines)
    assert (sorted(map(len, groups)), sorted(frozenset().union(*groups))) == ([3, 3, *[4] * 6], sorted(machines))
    assert (len(sets_left_out(machines)), sets_left_out(machines)[1:9]) == (1 + 8 + 28, groups)
    assert tasks.groups_of(machines[:12]) == [frozenset([machine]) for machine in machines[:12]]
    monkeypatch.setattr(tasks, "ALONE", 3)
    monkeypatch.setattr(tasks, "GROUPS", 3)
    tables = make_pool(machines[:6], 10)
    group = tasks.groups_of(machines[:6])[0]
    before, after = (fuse(pool, TREE).held_out.to_pandas() for pool in (tables, turned(tables, min(group))))
    same = (before["score"] == after["score"]).groupby(before["machine"]).all()
    assert {machine for machine in same.index if same[machine]} >= group
    assert not same.all()


def estimates(uniform=SAME, single=SAME, machines=MACHINES, **greedy):
    """Of three methods with these Omegas on the machines, whoever is left out unless a function of who that is."""
    pool = SimpleNamespace(machines=[*machines], cells=SimpleNamespace(machines=machines))

    def without(gone):
        rest = [machine not in gone for machine in machines]
        return SimpleNamespace(measured=lambda weights: np.repeat(weights[..., None, rest], 3, axis=-2))

    pool.without = without  # weights are these Omegas
    methods = {"uniform": {"": uniform}, "best_single": {"": single}, "greedy": greedy}

    def omegas(of, out):
        return {strength: np.array(o(out) if callable(o) else o, float) for strength, o in of.items()}

    found = {out: {name: omegas(of, out) for name, of in methods.items()} for out in sets_left_out(machines)}
    return Estimates(dict.fromkeys(["calibrated", "rank"], pool), found)


def test_what_beats_the_simple_methods_beyond_noise_is_delivered_and_the_best_of_it_with_its_gain():
    for uniform, searched, delivered in (
        (SAME, SAME, SINGLE),
        ((60.05, 60.05, 60.05), SAME, SINGLE),  # worth less than 0.1
        ((60.2, 60.2, 60.2), SAME, UNIFORM),
        ((63, 60.8, 60), SAME, UNIFORM),  # 1.4 standard errors
        ((64, 60, 57), SAME, SINGLE),  # 0.2
        (SAME, (60.2, 60.2, 60.2), GREEDY),
        (SAME, (63, 60.9, 60.1), SINGLE),  # 1.5 standard errors, or 1.9 if these were of all machines
        ((61, 61, 61), (60.9, 60.9, 60.9), UNIFORM),
        ((61, 61, 61), (62, 62, 62), GREEDY),
    ):
        assert estimates(uniform, weak=searched, poor=(50, 50, 50)).choose() == delivered
    found = estimates(weak=(62, 62, 62), strong=(64, 62, 63), lucky=(90, 60, 60), late=(61, 61, 61))
    assert (found.choose(), found.strength("greedy")) == (("greedy", "strong"), ("greedy", "lucky"))
    gain, error = found.gain(("greedy", "strong"))
    assert gain == pytest.approx(3 / sum(1 / o for o in (64, 62, 63)) - 60)
    assert error == pytest.approx(1 / np.sqrt(3), rel=0.06)


def test_each_machine_is_judged_by_what_was_found_without_it_and_of_one_nothing_is_told():
    found = estimates(weak=lambda out: [{"fan": 71, "pump": 72, "valve": 73}.get(min(out, default=""), 99)] * 3)
    lomo = found.lomo(lambda _: GREEDY)
    assert [metrics.auc_source for metrics in lomo.machines.values()] == pytest.approx([71, 72, 73])
    assert found.in_sample(GREEDY).omega == pytest.approx(99)
    found = estimates(weak=lambda out: (0, 70, 70) if len(out) == 2 else (50, 50, 50), poor=(55, 55, 55))
    assert found.choose(FAN) == found.strength("greedy", FAN) == GREEDY
    assert (found.choose(), found.strength("greedy")) == (SINGLE, ("greedy", "poor"))
    assert np.isnan(found.held_out(lambda _: SINGLE, FAN)[0]).tolist() == [True, False, False]
    found = estimates(machines=("fan",), uniform=(60,), single=(70,), strong=(80,), weak=(90,))
    assert (found.choose(), found.lomo(found.choose), found.gain(SINGLE)) == (UNIFORM, None, (None, None))
    assert found.strength("greedy") == ("greedy", "strong")
    of_two = estimates(machines=MACHINES[:2], uniform=(50, 50), single=(70, 70), weak=(50, 50))
    assert (of_two.choose(), of_two.choose(FAN)) == (SINGLE, UNIFORM)
    assert of_two.gain(UNIFORM) == (pytest.approx(-20), pytest.approx(0, abs=1e-9))


def test_figures_are_of_a_choice_made_without_the_machine():
    found = {}
    for out in sets_left_out(MACHINES):
        weights = (GOOD, POOR) if len(out) < 2 else (POOR, GOOD)
        found[out] = {**{method: {"": POOR} for method in METHODS}, "greedy": dict(zip("ab", weights, strict=True))}
    estimates = Estimates(dict.fromkeys(["calibrated", "rank"], POOL), found)
    good, poor = (pytest.approx(POOL.omega(weights)) for weights in (GOOD, POOR))
    found = validation_of(estimates, seed=0)
    assert estimates.choose() == ("greedy", "a")
    assert (found.in_sample.omega, found.lomo.omega) == (good, poor)
    assert found.interval[0] < found.lomo.omega < found.interval[1]
    np.testing.assert_allclose(found.held_out, POOR @ POOL.values)
    greedy = found.methods["greedy"]
    assert (greedy.strength, greedy.lomo.omega, greedy.fixed) == ("a", poor, good)
    assert (greedy.gain, greedy.gain_error) == estimates.gain(("greedy", "a"))
    assert found.marginal == {"a/good": 0, "a/poor": None, "b/other": 0}


def test_correlation_is_pearsons_inside_machines_and_a_marginal_what_is_lost_without_a_member():
    expected = np.mean([np.corrcoef(SCORES.values[:, rows]) for rows in SCORES.cells.rows], axis=0)
    assert correlations(SCORES) == pytest.approx(expected)
    constant = SCORES.with_values(np.stack([np.zeros(SCORES.values.shape[1]), SCORES.values[0]]))
    assert correlations(constant) == pytest.approx(np.diag([0, 1]))
    equal = dict.fromkeys(MACHINES, np.full(4, 0.25))
    lost = marginals(SCORES, equal)
    assert lost[2] < 0 < lost[0]
    assert lost[0] == pytest.approx(SCORES.omega(equal["fan"]) - SCORES.omega(np.array([0, 1, 1, 1]) / 3))
    alone = marginals(SCORES, {**equal, "pump": np.eye(4)[1]})
    assert [value is None for value in alone] == [False, True, False, False]


def test_gains_are_told_from_noise_by_pairs_on_the_same_clips_and_machines():
    """Of two machines drawn anew each is both one time in four: the ends of the interval. One has no targets."""
    tables = make_pool(("fan", "pump"))
    domain = np.where(tables["g0"]["machine"].to_numpy() == "fan", "source", tables["g0"]["domain"].to_numpy())
    tables = {name: tables[name].set_column(4, "domain", pa.array(domain)) for name in ("g0", "p0", "g1")}
    scores = labelled(tables)
    values = [*scores.values[[0, 1, 0]], scores.values[[0, 2]].mean(axis=0)]
    members = scores.with_values(np.stack(values), ("good", "useless", "itself", "half the same"))
    omega, *by_machine = (m.omega(np.eye(4)) for m in (members, members.without(["fan"]), members.without(["pump"])))
    interval, gains = compare(members, rng())
    assert interval == pytest.approx(bootstrap_intervals(tables["g0"]).omega, abs=1)
    useless = gains["useless"]
    assert useless.gain == pytest.approx(omega[0] - omega[1])
    assert useless.machines == pytest.approx(sorted(of[0] - of[1] for of in by_machine))
    assert 5 < useless.clips[0] < useless.gain < useless.clips[1]
    assert gains["itself"].clips == gains["itself"].machines == (0, 0)
    assert np.ptp(gains["half the same"].clips) < np.ptp(interval)


def figures(fusion):
    v = fusion.validation
    return (fusion.method, fusion.weights, v.in_sample, v.lomo, v.gains, v.methods, v.marginal)


def test_independent_errors_give_a_large_gain_with_figures_of_what_is_delivered_and_of_a_machine_without_its_labels():
    fused, other = fuse(TABLES, WIDE, {"made": "here"}), fuse(turned(TABLES, "pump"), WIDE)
    assert fused.weights["g0"] == fused.weights["g1"] == pytest.approx(fused.configuration_weights["a"]["good"] / 2)
    assert fused.table.equals(apply_weights(TABLES, fused.weights, {"made": "here"}, fused.scale))
    assert (fused.method == "best_single") == ("no other way" in fused.why)
    chosen = fused.validation.methods[fused.method]  # a search, with the strength that its own row has
    assert f"{chosen.gain:.2f} ± {chosen.gain_error:.2f} with its strength kept" in fused.why
    v, joined = fused.validation, Joined.read(TABLES, fused.weights)
    assert official_metrics(fused.table).omega == pytest.approx(v.in_sample.omega)
    assert official_metrics(fused.held_out).omega == pytest.approx(v.lomo.omega)
    assert metadata_of(fused.held_out) == {"made": "here", "weights": "chosen without the machine"}
    for method, scale in (("uniform", "calibrated"), ("rank_average", "rank")):
        expected = pytest.approx(official_metrics(joined.fused(EQUAL, scale, {})).omega, abs=0.01)
        assert (v.methods[method].in_sample.omega, v.methods[method].lomo.omega) == (expected, expected)
    for method in ("uniform", "best_single"):
        assert v.gains[method].gain == pytest.approx(v.lomo.omega - v.methods[method].lomo.omega)
    assert v.gains["best_single"].gain > 3
    assert v.marginal["a/poor"] < v.marginal["a/good"]
    pump = fused.held_out["machine"].to_numpy() == "pump"
    assert other.held_out["score"].to_numpy()[pump].tolist() == fused.held_out["score"].to_numpy()[pump].tolist()
    held_out = [f.validation.methods["greedy"].lomo.machines["pump"].hmean for f in (fused, other)]
    assert held_out[1] < 50 < held_out[0]


@pytest.mark.slow
@given(system=tiny_systems())
@settings(max_examples=8, deadline=None)
def test_a_fusion_of_tiny_tables_never_warns_and_its_figures_are_strict_json(system):
    fusion = fuse(*system)
    assert sum(fusion.weights.values()) == pytest.approx(1)
    if fusion.validation is not None:
        json.dumps(asdict(fusion.validation), allow_nan=False, default=np.ndarray.tolist)
    assert (fusion.validation is not None and fusion.validation.lomo is not None) == (fusion.held_out is not None)


@pytest.mark.slow
def test_the_seed_decides_and_neither_order_nor_place_of_execution_changes_anything():
    tables = make_pool(MACHINES[:2], 8)
    with session(num_cpus=2):
        from fusion.on_ray import run_on_ray  # imports ray, and that only after the session has set it up

        runners = (run_here, lambda problem, tasks: run_here(problem, tasks[::-1]), run_on_ray)
        forward, *others = (fuse(tables, TREE, runner=runner) for runner in runners)
    assert [figures(other) for other in others] == [figures(forward)] * 2
    assert forward.validation.methods["evolution"] != fuse(tables, TREE, seed=1).validation.methods["evolution"]


def test_what_labels_do_not_tell_is_not_claimed():
    hidden, drone = make_pool(per_cell=4, labelled=False), make_table(["drone"])
    normal = drone.filter(pc.equal(drone["condition"], "normal"))
    for tables, tells in ((make_pool(("fan",), 6), True), (hidden, False), (dict.fromkeys(hidden, normal), False)):
        fusion = fuse(tables, TREE)
        assert (fusion.method, fusion.scale, fusion.held_out) == ("uniform", "calibrated", None)
        assert list(fusion.weights.values()) == pytest.approx([0.125, 0.125, 0.25, 0.5])
        assert "fewer than two labelled machines" in fusion.why
        v = fusion.validation
        assert (v and (v.lomo, v.gains)) == ((None, {}) if tells else None)
    # Nor has such a machine a say beside others.
    tables, quiet = make_pool(MACHINES[:2], 8), [normal, make_table(["saw"], labelled=False)]
    known = fuse(tables, TREE)
    fusion = fuse({name: conform(pa.concat_tables([table, *quiet])) for name, table in tables.items()}, TREE)
    assert figures(fusion) == figures(known)
    assert fusion.table.num_rows == known.table.num_rows + sum(map(len, quiet))


def test_labels_and_tables_that_differ_or_labels_that_came_later_reach_no_search():
    tables, equal = make_pool(("fan",), 6), dict.fromkeys(TREE["a"]["good"], 0.5)
    other = {**tables, "g1": turned(tables, "fan")["g1"]}
    assert apply_weights(other, equal).equals(apply_weights(tables, equal))
    with pytest.raises(InputError, match=r"the condition of .* is anomaly in g0 and normal in g1"):
        fuse(other, TREE)
    with pytest.raises(InputError, match=r"o0 lacks 1 clip that g0 has, fan/test/source_anomaly_0000.wav"):
        fuse({**tables, "o0": tables["o0"].slice(1)}, TREE)
    with pytest.raises(ValueError, match="labels for reports only have reached a search"):
        fuse({name: table.replace_schema_metadata({REPORT_ONLY: "true"}) for name, table in tables.items()}, TREE)


def test_a_fused_table_is_the_weighted_sum_calibrated_anew_whatever_labels_order_and_other_tables_there_are():
    tables, weights = make_pool(per_cell=5), {"g0": 0.5, "g1": 0.0, "p0": 0.2, "o0": 0.3}
    fused, known = apply_weights(tables, weights, {"x": "y"}), tables["g0"].drop_columns(["score", "calibrated"])
    score = sum(w * tables[name]["calibrated"].to_numpy() for name, w in weights.items())
    assert fused["score"].to_numpy() == pytest.approx(score)
    assert fused["calibrated"].to_numpy() == pytest.approx(calibrate(fused, score))
    assert fused.drop_columns(["score", "calibrated"]).equals(known)
    assert metadata_of(fused) == {"x": "y"}
    del tables["g1"]
    nothing, order = pa.nulls(len(score), pa.string()), np.arange(len(score))[::-1]
    for name, table in tables.items():
        tables[name] = table.set_column(5, "condition", nothing).set_column(4, "domain", nothing).take(order)
    unknown = apply_weights(tables, weights)
    assert unknown.select(["clip", "score", "calibrated"]).equals(fused.select(["clip", "score", "calibrated"]))
    assert unknown["condition"].null_count == len(score)


def test_a_rank_is_the_share_of_training_clips_below_a_tie_counting_half_and_transductive_tables_rank_their_own():
    table = conform(pa.concat_tables([make_table(train=10), make_table(["fan"], 3, 7, section=1)]))
    machine, section, split = (table[name].to_numpy() for name in ("machine", "section", "split"))
    score, expected = table["score"].to_numpy().round(1), []
    for i in range(len(table)):
        train = score[(machine == machine[i]) & (section == section[i]) & (split == "train")]
        expected.append(np.mean((train < score[i]) + (train == score[i]) / 2))
    assert on_scale("rank", table, np.stack([-score, score]))[1].tolist() == pytest.approx(expected)
    assert on_scale("calibrated", table, score) is score
    test_rows = {n: t.filter(pc.equal(t["split"], "test")) for n, t in make_pool(MACHINES[:2], 6).items()}
    with pytest.raises(InputError, match="machine fan section 0 has 0 training clips"):
        fuse(test_rows, TREE)
    normalised = {name: transductive_normalisation(table) for name, table in test_rows.items()}
    fusion = fuse(normalised, TREE)
    assert (fusion.transductive, is_transductive(fusion.table)) == (True, True)
    assert fusion.table["calibrated"].null_count == 0
    ranks = on_scale("rank", normalised["g0"], normalised["g0"]["score"].to_numpy()[None])[0]
    assert sorted(ranks) == pytest.approx(np.repeat((np.arange(24) + 0.5) / 24, 2))
