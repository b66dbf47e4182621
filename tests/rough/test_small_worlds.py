"""Small and poor data: they run to the end, or are refused in one line before anything is trained."""

import dataclasses
import os
import re
import subprocess
import sys
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import yaml
from chain import NOTEBOOKS, Chain, write_world
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from plain import refused

from ilm_lib import load_params
from ilm_lib.baselines.sasrec import train_sasrec
from ilm_lib.data import load_openp5
from ilm_lib.data.enough import LEAST, Counts, check
from ilm_lib.data.own_profile import Sizes, render
from ilm_lib.methods import METHODS
from ilm_lib.metrics import FEWEST_PAIRS, paired_bootstrap, ranking_metrics
from ilm_lib.paper import RANKING_METRICS
from ilm_lib.report import plot_metric_by_method, save_figure
from ilm_lib.settings import SASRec, validate
from ilm_lib.study import claims, grid, inputs, openp5, scope
from ilm_lib.study.probes import mean_auc, neighbours_kept
from ilm_lib.train.pairs import Pairs
from ilm_lib.train.phase1 import train_phase1

GENRES = ("drama", "comedy", "war", "horror")


def films(count):
    """A text record for each of the first items."""
    return {
        i: {"title": f"Film {i}", "genres": [GENRES[i % 4]], "overview": f"A story of number {i}, and of {i % 7}."}
        for i in range(count)
    }


def histories(users, items, longest=6, seed=0):
    """Every item is in some history; each has four items or more, none twice."""
    rng = np.random.default_rng(seed)
    own = [rng.permutation(items)[: rng.integers(4, longest + 1)].tolist() for _ in range(users)]
    return [[*range(items)], *own[1:]]


# ------------------------------------------------------------ what is refused, and in which words

USUAL = Counts(name="Small", users=30, items=40, examples=90, texts=40, ii=90, ui=100, facts=(2,) * 40)
UI, II, PLAIN = ({"phase1.losses": losses} for losses in (("ui",), ("ii", "ui"), ("itc", "itg", "itm", "ui")))
FILMS = {"elm24.enabled": True, "elm24.min_facts": 2}
ALL_FOUR = {"methods": ("ILM", "ILM-IT", "ILM-IT-II", "ILM-IT-UI")}
NO_TEXT = {"texts": 0, "facts": (0,) * 40}

# counts that differ from the usual ones, settings, what the message holds (nothing: it is let through)
COUNTS = {
    "usual": ({}, PLAIN, ()),
    "just-enough": ({"users": 20, "items": 20, "examples": 20, "texts": 20, "ii": 20, "ui": 20}, PLAIN, ()),
    "one-user": ({"users": 1}, PLAIN, ("1 user;", "needs 20")),
    "nineteen-users": ({"users": 19}, PLAIN, ("19 users;", "needs 20")),
    "five-items": ({"items": 5}, PLAIN, ("5 items;", "needs 20")),
    "fewer-items-than-beams": ({"items": 9}, PLAIN, ("9 items;", "needs 20")),
    "nothing-to-train-on": ({"examples": 0}, PLAIN, ("0 examples", "fourth item")),
    "one-example": ({"examples": 1}, PLAIN, ("1 example to train on",)),
    "few-of-all": ({"users": 2, "items": 3, "examples": 4}, PLAIN, ("2 users", "3 items", "4 examples", "20 of each")),
    "no-text": (NO_TEXT, PLAIN, ("0 items have one", "phase1.losses: [ui, ii]", "add texts")),
    "two-texts": ({"texts": 2}, PLAIN, ("itc, itg, itm", "2 items have one", "needs 20")),
    "nineteen-texts": ({"texts": 19}, PLAIN, ("19 items have one",)),
    "no-text-asked-for": (NO_TEXT, UI, ()),
    "no-text-pairs-alone": (NO_TEXT, II, ()),
    "text-generation-alone": (NO_TEXT, {"phase1.losses": ("itg",)}, ("itg read item texts", "[ui, ii]")),
    "no-ii": ({"ii": 3}, II, ("ii reads pairs", "there are 3", "phase1.losses: [ui]", "add interactions")),
    "no-ii-not-asked-for": ({"ii": 3}, PLAIN, ()),
    "no-text-no-ii": ({**NO_TEXT, "ii": 3}, PLAIN, ("phase1.losses: [ui],",)),
    "no-ui": ({"ui": 2}, UI, ("ui reads pairs", "there are 2", "phase1.losses: [ii]")),
    "no-pairs-at-all": ({**NO_TEXT, "ui": 2, "ii": 2}, UI, ("there are 2. Or add interactions",)),
    "small-holdout": ({}, {**PLAIN, "phase1.holdout": 0.01}, ("needs 150 of each",)),
    "large-holdout": ({"texts": 20}, {**PLAIN, "phase1.holdout": 0.4}, ()),
    "no-text-four-methods": (NO_TEXT, ALL_FOUR, ("ILM-IT, ILM-IT-II, ILM-IT-UI out of methods", "[ui, ii]")),
    "no-text-text-method": (NO_TEXT, {"methods": ("MLP", "ILM-IT")}, ("Take ILM-IT out of methods",)),
    "no-ii-ii-method": ({"ii": 3}, {"methods": ("ILM-IT-II",)}, ("there are 3", "Take ILM-IT-II out of methods")),
    "no-text-no-phase-1": (NO_TEXT, {"methods": ("OpenP5-R", "MLP", "ILM-rand")}, ()),
    "no-text-llm-alone": (NO_TEXT, {"methods": ("OpenP5-R",)}, ()),
    "no-text-words-alone": (
        NO_TEXT, {**FILMS, "evaluation.enabled": False, "chat.enabled": False}, ("0 items have 2", "enabled: false")
    ),
    "no-text-vectors": (NO_TEXT, {**UI, "score.vectors": ("text",)}, ("score.vectors", "0 items of 40", "Add texts")),
    "text-vectors": ({"texts": 20}, {**PLAIN, "score.vectors": ("text",)}, ()),
    "films": ({}, {**PLAIN, **FILMS}, ()),
    "nineteen-films": ({"facts": (2,) * 19 + (1,) * 21}, {**PLAIN, **FILMS}, ("19 items have 2", "need 20")),
    "films-of-three-facts": ({}, {**PLAIN, **FILMS, "elm24.min_facts": 3}, ("0 items have 3",)),
    "films-with-titles-alone": ({"facts": (0,) * 40}, {**PLAIN, **FILMS, "elm24.min_facts": 0}, ("no item has",)),
    "no-film-to-test": ({}, {**PLAIN, **FILMS, "elm24.test_fraction": 0.01}, ("test_fraction 0.01 of 40", "0 to test")),
    "no-film-to-train-on": ({}, {**PLAIN, **FILMS, "elm24.test_fraction": 0.99}, ("40 to test and 0 to train",)),
    "films-from-a-file": ({"facts": (0,) * 40}, {**PLAIN, **FILMS, "elm24.file": "rows.parquet"}, ()),
    "no-films-not-asked-for": ({"facts": (0,) * 40}, PLAIN, ()),
}  # fmt: skip


def counted(changes):
    return dataclasses.replace(USUAL, **changes)


@pytest.mark.parametrize("case", COUNTS)
def test_data_are_held_against_the_settings(case):
    changes, asked, words = COUNTS[case]
    params = load_params("toy", **{"elm24.enabled": False, **asked})
    if words:
        refused(lambda: check(params, counted(changes)), "Small", *words)
    else:
        check(params, counted(changes))


@pytest.mark.parametrize("case", [c for c, (_, asked, words) in COUNTS.items() if "phase1.losses: [" in str(words)])
def test_the_remedy_helps(case):
    """A profile that takes the losses that the message names is let through."""
    changes, asked, _ = COUNTS[case]
    without = {"elm24.enabled": False, **asked, "methods": ("OpenP5-R", "MLP", "ILM-rand", "ILM")}
    with pytest.raises(ValueError) as caught:
        check(load_params("toy", **without), counted(changes))
    losses = str(caught.value).partition("phase1.losses: [")[2].partition("]")[0].split(", ")
    check(load_params("toy", **{**without, "phase1.losses": tuple(losses)}), counted(changes))


# worlds as they come, and what the data stage says of them before anything else
WORLDS = {
    "no-texts": (histories(25, 30), None, ("0 items have one",)),
    "two-texts": (histories(25, 30), films(2), ("2 items have one",)),
    "empty-texts": (histories(25, 30), {i: {"title": ""} for i in range(30)}, ("0 items have one",)),
    "five-items": ([[u % 5, (u + 1) % 5, (u + 2) % 5, (u + 3) % 5] for u in range(25)], films(5), ("5 items;",)),
    "three-items-each": ([[u, u + 1, u + 2] for u in range(25)], films(27), ("0 examples",)),
    "one-user": ([list(range(30))], films(30), ("1 user;",)),
    "one-user-of-three": ([[0, 1, 2]], films(3), ("1 user", "3 items", "0 examples")),
    "one-item-again-and-again": ([[0] * 9] * 25, films(1), ("1 item;",)),
    "all-users-alike-and-short": ([[0, 1, 2, 3]] * 25, films(4), ("4 items;",)),
}  # fmt: skip


@pytest.mark.parametrize("case", WORLDS)
def test_poor_worlds_are_refused_with_their_counts(case, tmp_path):
    sequences, texts, words = WORLDS[case]
    study = Chain(tmp_path, sequences, texts)
    refused(lambda: study.run(["01"]), "Small", *words)
    refused(lambda: study.run(["02"]), "Small", *words)  # whoever comes by another door is told as well
    assert {p.name for p in (tmp_path / "runs" / "small").iterdir()} == {"data"}  # nothing was trained


@pytest.mark.parametrize("case", WORLDS)
def test_the_writer_of_profiles_agrees(case, tmp_path):
    """It writes no profile that the study refuses."""
    sequences, texts, words = WORLDS[case]
    dataset = load_openp5(write_world(tmp_path / "w", sequences, texts), name="Small")
    if "items have one" in words[0]:
        check(validate(yaml.safe_load(render(Sizes.of(dataset), "Small", "small", "w"))), Counts.of(dataset))
    else:
        refused(lambda: Sizes.of(dataset), "Small", *words)


def test_the_writer_leaves_out_pairs_that_are_not_there(tmp_path):
    """All users had the same few items in the same order: 20 items, and few pairs of them."""
    sequences = [[0, 1, 2, 3, 4, 5 + u % 15] for u in range(25)]
    dataset = load_openp5(write_world(tmp_path / "w", sequences), name="Small")
    written = validate(yaml.safe_load(render(Sizes.of(dataset), "Small", "small", "w")))
    assert written.phase1.losses == ("ui",)
    check(written, Counts.of(dataset))


# ------------------------------------------------------------ what runs

RUNS = {
    "usual": (histories(22, 24), films(24), {}),
    "no-texts": (histories(22, 24), None, {"phase1": {"losses": ["ui"]}}),
    "no-texts-ii": (histories(22, 24), None, {"phase1": {"losses": ["ii"]}}),
    "llm-alone": (histories(22, 24), films(24), {"methods": ["OpenP5-R"]}),
    "llm-and-mlp": (histories(22, 24), films(24), {"methods": ["OpenP5-R", "MLP"]}),
    "ilm-alone": (histories(22, 24), films(24), {"methods": ["ILM"]}),
    "ilm-without-its-llm": (histories(22, 24), films(24), {"methods": ["MLP", "ILM"]}),
    "the-three-losses": (histories(22, 24), films(24), {"methods": ["ILM-IT", "ILM-IT-II", "ILM-IT-UI"]}),
    "text-losses-alone": (histories(22, 24), films(24), {"methods": ["ILM"], "phase1": {"losses": ["itc", "itm"]}}),
    "an-item-nobody-has-in-training": ([*histories(22, 24), [0, 1, 2, 3, 24, 25]], films(26), {"methods": ["ILM"]}),
    "the-same-history": ([list(range(24))] * 22, films(24), {}),
    "repeated-items": ([*histories(2, 24), *[[1, 1, 1, 2, 2, u % 24] for u in range(20)]], films(24), {}),
    "equal-texts": (histories(22, 24), {i: {"title": "Film"} for i in range(24)}, {"methods": ["ILM"]}),
    "a-text-of-10000-words": (histories(22, 24), films(24) | {3: {"title": "word " * 10_000}}, {"methods": ["ILM"]}),
    "some-without-texts": (histories(22, 24), films(20), {"methods": ["ILM"]}),
    "wals": (histories(22, 24), None, {"methods": ["MLP"], "embeddings": {"engine": "implicit"}}),
    "readings": (histories(22, 24), films(24),
                 {"methods": ["ILM"], "ablations": {"readings": {"x": {"phase1.center": False}}}}),
    "films": (histories(22, 24), films(24), {"methods": ["OpenP5-R", "MLP", "ILM"], "elm24": {"enabled": True}}),
    "films-mlp-alone": (histories(22, 24), films(24), {"methods": ["MLP"], "elm24": {"enabled": True}}),
}  # fmt: skip

DRAWN = ("llm-alone", "ilm-alone", "no-texts", "the-same-history", "films-mlp-alone")  # with all their figures


def holds(study: Chain) -> None:
    """What is true of every run: rates between 0 and 1, each method's rows, and verdicts with a reason."""
    params, results, found = load_params(study.profile), study.results(), study.claims()
    assert np.isfinite(results["value"]).all()
    rates = results[results["metric"].isin(RANKING_METRICS)]
    assert rates["value"].between(0, 1).all() and (results["n"] > 0).all()
    table3 = results[results["table"] == "table3"]
    expected = {*openp5.baselines(params), *params.methods}
    assert set(table3["method"]) == expected and {len(g) for _, g in table3.groupby("method")} == {48}
    assert found["verdict"].notna().all() and found["reason"].str.len().gt(10).all()
    about_ilm = found["claim"].str.contains("ILM beats|ILM is ahead")
    if "ILM" not in params.methods:
        assert set(found[about_ilm]["verdict"]) == {"not tested"}
        assert found[about_ilm]["reason"].str.contains("needs the methods .*ILM").all()


@pytest.mark.slow
@pytest.mark.parametrize("case", RUNS)
def test_small_worlds_run_to_the_end(case, tmp_path):
    sequences, texts, changes = RUNS[case]
    study = Chain(tmp_path, sequences, texts, draw=case in DRAWN, **changes)
    said = study.run()
    holds(study)
    (ledger,) = study.claims().loc[lambda c: c["claim"].str.startswith("ILM beats OpenP5-R"), "verdict"]
    assert f"the frozen LLM gains from CF tokens: {ledger} (" in said["06"]  # a page and the ledger judge alike
    assert ("03" in said) == any(METHODS[m].phase1 for m in load_params(study.profile).methods)


# ------------------------------------------------------------ worlds that nobody thought of


@st.composite
def worlds(draw):
    users, items = (draw(st.one_of(st.integers(LEAST, most), st.integers(3, most))) for most in (30, 50))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    repeats, longest = draw(st.booleans()), draw(st.integers(3, 12))
    own = [rng.choice(items, rng.integers(3, longest + 1), replace=repeats or longest > items) for _ in range(users)]
    if draw(st.booleans()):
        own[0] = np.arange(items)  # else some items may be in nobody's history
    texts = {}
    for i in rng.permutation(items)[: draw(st.one_of(st.just(items), st.integers(0, items)))].tolist():
        texts[i] = {"title": f"Film {i}", "genres": rng.permutation(GENRES)[: rng.integers(0, 4)].tolist()}
    methods = draw(st.lists(st.sampled_from(["OpenP5-R", "MLP", "ILM-rand", "ILM"]), min_size=1, unique=True))
    losses = draw(st.lists(st.sampled_from(["itc", "itg", "itm", "ii", "ui"]), min_size=1, unique=True))
    return [s.tolist() for s in own], texts, methods, losses


def runs_or_is_refused(world, folder):
    sequences, texts, methods, losses = world
    study = Chain(folder, sequences, texts, draw=False, methods=methods, phase1={"losses": losses})
    dataset, params = load_openp5(folder / "data" / "small", name="Small"), load_params(study.profile)
    try:
        check(params, Counts.of(dataset))
    except ValueError as error:
        refused(lambda: study.run(["01"]), str(error))
        assert {p.name for p in (folder / "runs" / "small").iterdir()} == {"data"}
    else:
        study.run()
        holds(study)


RULES = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck), "database": None}
BY_HAND = [([list(range(20))] * 20, {}, ["OpenP5-R", "MLP"], ["ui"]), ([[0, 1, 2]] * 3, {}, ["ILM"], ["itc"])]


@settings(max_examples=2, **RULES)
@given(world=worlds())
@example(world=BY_HAND[0])
@example(world=BY_HAND[1])
def test_a_few_worlds_run_or_are_refused(world, tmp_path_factory):
    runs_or_is_refused(world, tmp_path_factory.mktemp("world"))


@pytest.mark.slow
@settings(max_examples=25, **RULES)
@given(world=worlds())
def test_many_worlds_run_or_are_refused(world, tmp_path_factory):
    runs_or_is_refused(world, tmp_path_factory.mktemp("world"))


# ------------------------------------------------------------ the library, without a study


def pairs_of(texts, ii, ui, users=4):
    i, u = (np.arange(2 * n).reshape(n, 2) % 4 for n in (ii, ui))
    return Pairs([f"text {t}" for t in range(texts)], np.arange(texts, dtype=np.int64), i, u + np.array([4, 0]))


@pytest.mark.parametrize(
    ("texts", "ii", "ui", "wanted", "words"),
    [
        (0, 9, 9, ("itc", "itg"), ("itc has 0, itg has 0",)),
        (1, 9, 9, ("itm", "ui"), ("itm has 1",)),
        (9, 0, 9, ("itc", "ii"), ("ii has 0",)),
        (9, 9, 1, ("ui",), ("ui has 1",)),
    ],
    ids=["no-texts", "one-text", "no-ii", "one-ui"],
)
def test_phase_1_names_the_loss_without_pairs(texts, ii, ui, wanted, words):
    import torch

    params = load_params("toy", **{"phase1.steps": 1, "qformer.width": 16, "qformer.heads": 2, "qformer.layers": 1})
    call = lambda: train_phase1(
        pairs_of(texts, ii, ui), torch.zeros(9, 4), params.qformer, params.phase1, wanted, seed=0
    )
    refused(call, *words, "leave out these losses")


def test_the_trainers_name_what_is_missing(tmp_path):
    short = load_openp5(write_world(tmp_path / "w", [[u, u + 1, u + 2] for u in range(5)]), name="Small")
    refused(lambda: train_sasrec(short, SASRec(steps=1), seed=0), "Small", "no user has two training items")
    study = Chain(tmp_path / "s", histories(22, 24))
    with mock.patch.dict(os.environ, study.environment):
        params = load_params(study.profile, **{"phase1.losses": ("ui",)})
        inputs.data(params, build=True)
        tasks = dataclasses.replace(inputs.recommendation_tasks(params), data=short)
    refused(tasks.corpus, "Small", "no example to train on")


@pytest.mark.parametrize("count", [1, 2, FEWEST_PAIRS - 1])
def test_too_few_pairs_are_no_test(count):
    """All of five differences lean one way by chance once in sixteen: that is no p of .0002."""
    found = paired_bootstrap(np.ones(count), np.zeros(count))
    assert found.diff == 1 and np.isnan([found.ci_low, found.ci_high, found.p_value]).all()
    assert claims.judge(found, found.p_value, drawn_over="films") == ("inconclusive", "too few films for an interval")
    assert paired_bootstrap(np.ones(FEWEST_PAIRS), np.zeros(FEWEST_PAIRS)).p_value < 0.05


def test_probes_of_little_say_that_nothing_was_measured():
    x = np.random.default_rng(0).normal(size=(5, 3))
    assert np.isnan(mean_auc(x, [[]] * 5)) and neighbours_kept(x, x) == 1


def test_an_oracle_finds_all_and_chance_little():
    target = np.arange(20)
    best = np.stack([np.r_[t, np.delete(np.arange(20), t)[:9]] for t in target])
    assert all((v == 1).all() for v in ranking_metrics(best, target).values())
    rng = np.random.default_rng(0)
    shuffled = np.stack([rng.permutation(20)[:10] for _ in range(4000)])
    assert ranking_metrics(shuffled, rng.integers(20, size=4000))["HR@10"].mean() == pytest.approx(0.5, abs=0.03)


# ------------------------------------------------------------ what a profile has no use for

PLANS = {
    "all": ({}, {}),
    "no-scores": ({"evaluation.readouts": ("beam",)}, {"10_scoring": "evaluation.readouts has no score"}),
    "no-beam": (
        {"evaluation.readouts": ("score",)},
        {n: "evaluation.readouts has no beam" for n in ("06_openp5_eval", "07_ablations", "09_readings")},
    ),
    "no-elm": ({"elm24.enabled": False}, {"05_elm24_eval": "elm24.enabled is false"}),
    "no-readings": ({"ablations.readings": None}, {"09_readings": "ablations.readings is empty"}),
    "mlp": ({"methods": ("OpenP5-R", "MLP")}, {"03_phase1": "none of the methods", "09_readings": "not among methods"}),
    "llm": (
        {"methods": ("OpenP5-R",)},
        {"03_phase1": "has a phase 1", "05_elm24_eval": "reads a film's vector", "09_readings": "not among methods",
         "10_scoring": "reads an item's vector", "11_chat": "reads an item's vector"},
    ),
    "no-chat": ({"chat.enabled": False}, {"11_chat": "chat.enabled is false"}),
    "three-losses": ({"methods": ("ILM-IT", "ILM-IT-UI")}, {"09_readings": "not among methods"}),
    "ilm": ({"methods": ("ILM",)}, {}),
    "words": (
        {"evaluation.enabled": False},
        {n: "evaluation.enabled is false"
         for n in ("03_phase1", "04_phase2", "06_openp5_eval", "07_ablations", "09_readings", "10_scoring")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PLANS)
def test_what_is_left_out_is_said(case):
    changes, expected = PLANS[case]
    params = load_params("toy", **{k: v for k, v in changes.items() if v is not None})
    if "ablations.readings" in changes:
        params = params.model_copy(update={"ablations": params.ablations.model_copy(update={"readings": {}})})
    found = scope.left_out(params)
    assert set(found) == set(expected)
    for notebook, words in expected.items():
        assert words in found[notebook]
        refused(lambda n=notebook: scope.need(params, n), notebook, words)


def test_the_grid_says_what_it_leaves_out(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path))
    params = load_params("toy", methods=("OpenP5-R", "MLP"))
    monkeypatch.setattr(grid, "load_params", lambda name: params)
    monkeypatch.setattr(grid, "_follow", lambda *_: (1, True))
    grid.main(["toy"])
    said = capsys.readouterr().out
    assert "left out: 03_phase1; none of the methods OpenP5-R, MLP has a phase 1" in said and "09_readings" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("methods", "rules"),
    [
        (["OpenP5-R"], {"backbone", "embeddings", "openp5", "ablations"}),
        (["OpenP5-R", "MLP"], {"phase2", "backbone", "embeddings", "openp5", "ablations", "scoring"}),
        (["ILM"], {"phase1", "phase2", "backbone", "embeddings", "openp5", "ablations", "scoring"}),
    ],
    ids=["llm", "mlp", "ilm"],
)
def test_the_grid_plans_no_more_than_a_profile_needs(methods, rules, tmp_path):
    study = Chain(tmp_path, methods=methods)
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "2", "--config", f"profile={study.profile}"]
    done = subprocess.run(
        command, cwd=NOTEBOOKS.parent, env=os.environ | study.environment, capture_output=True, text=True
    )
    planned = set(re.findall(r"^rule (\w+):", done.stdout + done.stderr, re.MULTILINE))
    assert done.returncode == 0 and planned == rules | {"data", "all"}


# ------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "iALS"),
        ({"embeddings.engine": "implicit"}, "WALS"),
        ({"embeddings.file": "mine.npz"}, "CF file"),
        ({"embeddings.engine": "implicit", "embeddings.file": "mine.npz"}, "CF file"),
    ],
)
def test_dot_products_are_called_by_what_made_the_vectors(changes, name):
    assert openp5.baselines(load_params("toy", **changes)) == ("Popularity", name, "SASRec")
    assert METHODS[name].encoder is None


def test_every_method_can_be_drawn(tmp_path):
    keys = {"table": "table3", "dataset": "Small", "task": "both", "prompt": "seen", "history": "kept", "variant": ""}
    keys |= {"readout": "", "seed": 0, "metric": "HR@10", "value": 0.2, "n": 20}
    rows = pd.DataFrame([{**keys, "method": m} for m in METHODS])
    assert save_figure(plot_metric_by_method(rows, "HR@10"), tmp_path / "all").is_file()
