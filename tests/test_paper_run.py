"""The row of Table 3 at a tiny size: stopped again and again it ends with the figures of an undisturbed run."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest

from bench import paper_run
from ilm_lib.profiles import runs_dir
from ilm_lib.study import openp5
from ilm_lib.train import loop

TINY = """
extends: toy
methods: [OpenP5-R, MLP, ILM-rand, ILM]
data: {num_items: 80, num_users: 60}
embeddings: {dim: 8, iterations: 2}
qformer: {num_query_tokens: 2, layers: 2, width: 16, heads: 2, inner: 24, contrast_dim: 8, text_vocab: 450}
phase1: {steps: 9, batch_size: 8, optimizer: adafactor, relative: false}
backbone: {layers: 2, width: 32, heads: 2, inner: 48, vocab: 450, steps: 11, batch_size: 4}
phase2: {steps: 8, batch_size: 4, eval_every: 4, dev_users: 10}
evaluation: {max_users: 30}
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """tiny("runs"): a profile, and a folder of runs for it."""
    monkeypatch.setenv("ILM_PROGRESS", str(tmp_path / "progress"))
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")

    def of(runs: str) -> list[str]:
        monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path / runs))
        return ["--profile", str(path)]

    return of


def left() -> tuple[dict, dict[str, pd.DataFrame], dict[str, list]]:
    """The report, the logs of all trainings and the items ranked first for every user."""
    home = runs_dir() / "tiny"
    logs = {path.parts[-3]: pd.read_parquet(path) for path in home.glob("*/*/log.parquet")}
    (tops,) = home.glob("evaluation/*/tops.npz")
    assert not [*home.glob("*/*.partial"), *home.glob("*/*/state.*")]
    with np.load(tops) as saved:
        ranked = {name: saved[name].tolist() for name in saved.files}
    return json.loads((home / "paper_run" / "ilm-seed0.json").read_text(encoding="utf-8")), logs, ranked


@pytest.mark.slow
def test_a_row_that_is_made_in_pieces_is_the_row(tiny, monkeypatch, capsys):
    assert paper_run.main([*tiny("whole"), "--peak", "1"]) == 0
    said, (whole, logs, ranked) = capsys.readouterr().out, left()
    assert "ILM on Toy, seed 0" in said and "unseen" in said and "LLM 0." in said.split("utilisation:")[1]
    assert [line["whose"] for line in whole["row"]] == ["ours", "ours"]  # the paper has no such data set
    assert set(whole["seconds"]) == set(paper_run.STAGES) and set(whole["utilisation"]) == {"phase 1", "LLM", "phase 2"}

    arguments, asked, answers = tiny("pieces"), itertools.count(1), []
    for module in (loop, openp5, paper_run):  # every fifth time that something asks, the time is over
        monkeypatch.setattr(module, "is_over", lambda: next(asked) % 5 == 0)
    while not answers or answers[-1] == paper_run.AGAIN:
        answers.append(paper_run.main([*arguments, "--minutes", "9"]))
    stopped = capsys.readouterr().out
    assert answers[-1] == 0 and len(answers) > 5
    for words in (
        "phase 1: stopped after step",
        "backbone: stopped after step",
        "phase 2: stopped",
        "evaluation: stopped",
    ):
        assert words in stopped
    pieces, logs_of_pieces, ranked_in_pieces = left()
    assert pieces["row"] == whole["row"] and ranked_in_pieces == ranked
    assert set(logs) == set(logs_of_pieces) == {"phase1", "backbone", "phase2"}
    for name, log in logs.items():
        pd.testing.assert_frame_equal(logs_of_pieces[name], log)

    for module in (loop, openp5, paper_run):
        monkeypatch.setattr(module, "is_over", lambda: False)
    assert paper_run.main(arguments) == 0 and left()[0]["row"] == whole["row"]  # all of it is there
    assert paper_run.main([*arguments, "--method", "OpenP5-R"]) == 0  # the LLM alone, which is there too


def test_the_papers_row_stands_beside_ours(tiny, monkeypatch):
    tiny("none")
    params = paper_run.load_params("paper-beauty")
    ours = dict.fromkeys(paper_run.RANKING_METRICS, pd.Series([0.5, 0.0]))
    monkeypatch.setattr(paper_run, "per_user_metrics", lambda *asked: ours)
    table = paper_run.row(params, "ILM", None)
    assert table[["prompt", "whose"]].values.tolist() == [
        ["seen", "ours"], ["seen", "paper"], ["unseen", "ours"], ["unseen", "paper"],
    ]  # fmt: skip
    assert table.iloc[1][["HR@10", "NDCG@10"]].tolist() == [0.0270, 0.0182] and table.iloc[0]["HR@5"] == 0.25
    assert paper_run.row(params, "ILM-IT", None).iloc[1]["HR@10"] == 0.0262  # of Table 4
    assert paper_run.utilisation(params, "ILM", {"LLM": 1.0}, None) == {}


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--minutes", "0"], "no whole number from 1"),
        (["--method", "SASRec"], "invalid choice"),
        (["--profile", "paper-elm24"], "no OpenP5 evaluation"),
        (["--profile", "ml1m-scored"], "no OpenP5 evaluation"),
    ],
)
def test_what_cannot_be_run_is_said_first(arguments, said, capsys):
    assert paper_run.main(arguments) == 2
    assert said in capsys.readouterr().err
