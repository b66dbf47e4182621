"""Conversations in the study: results, claims and the command that makes a model that talks."""

import sys

import numpy as np
import pandas as pd
import pytest

from ilm_lib.paper import CHAT_CLAIMS, TOLD_CLAIMS
from ilm_lib.profiles import load_params
from ilm_lib.report import plot_success
from ilm_lib.report.results import check_results
from ilm_lib.study import conversation, conversation_results, talk
from ilm_lib.study.artifacts import MissingStage

PARAMS = load_params("toy", **{"chat.elm_weight": 0.0})
SHARE = {"": 0.5, "told=words": 0.5, "told=films": 0.1, "told=another": 0.05, "llm=off": 0.8}


@pytest.fixture
def drawn(monkeypatch):
    """Seekers of whom each variant serves a share, the same ones first."""

    def found(params, seed, variant, *, build=False):
        order = np.random.default_rng(0).permutation(200) / 200
        return np.stack([order < SHARE[variant] * turn / 4 for turn in range(1, 5)], 1)

    monkeypatch.setattr(conversation_results, "found", found)
    written = {"": {"links_valid": (1.0, 80), "log_pplx": (4.25, 900)}, "tokens=off": {"log_pplx": (3.5, 900)}}
    monkeypatch.setattr(conversation_results.replies, "measured", lambda *args, **kwargs: written)
    told = {"": {"log_pplx": (2.0, 90), "genres_right": (0.75, 8)}, "vectors=another": {"log_pplx": (2.5, 90)}}
    monkeypatch.setattr(conversation_results.single_turns, "measured", lambda *args, **kwargs: told)
    items = {"": np.linspace(-3, -1, 40), "vectors=another": np.linspace(-3, -1, 40) - 0.5}
    monkeypatch.setattr(conversation_results.single_turns, "by_item", lambda *args, **kwargs: items)


def test_rows_hold_every_variant_turn_and_seed(drawn):
    rows = check_results(conversation_results.result_rows(PARAMS.with_(seeds=(0, 1))))
    assert len(rows) == (5 * 4 + 3) * 2 and set(rows["readout"]) == {""}
    one = rows[(rows["variant"] == "told=films") & (rows["metric"] == "success@4") & (rows["seed"] == 1)]
    assert one["value"].item() == pytest.approx(0.1) and one["n"].item() == 200
    shown = conversation_results.table(rows).set_index("told")
    assert shown.loc["words and films"].tolist() == [0.125, 0.25, 0.375, 0.5]
    assert list(shown.index) == list(conversation_results.NAMES.values())
    assert conversation_results.written_table(rows)["value"].tolist() == [1.0, 4.25, 3.5]
    with pytest.raises(ValueError, match="success, recall, MRR and shares lie in"):
        check_results(rows.assign(value=1.5))


def test_single_turns_are_shown_where_they_are_taught(drawn):
    params = PARAMS.with_(**{"chat.elm_weight": 0.5})
    rows = check_results(conversation_results.result_rows(params))
    shown = conversation_results.single_turns_table(rows).set_index("tokens")["nats a token of the answer"]
    assert shown.to_dict() == {"the item's own": 2.0, "another item's": 2.5}
    (claim,) = (c for c in conversation_results.chat_claims(params) if c.claim in TOLD_CLAIMS.values())
    assert claim.verdict == "reproduced" and claim.ours == "-2.000 against -2.500"
    params = PARAMS.with_(**{"chat.elm_weight": 0.0})
    assert conversation_results.ASKED not in set(conversation_results.result_rows(params)["task"])
    assert not {*TOLD_CLAIMS.values()} & {c.claim for c in conversation_results.chat_claims(params)}


def test_claims_follow_the_rules(drawn):
    claims = {claim.claim: claim for claim in conversation_results.chat_claims(PARAMS)}
    judged = {variant: claims[sentence].verdict for variant, sentence in CHAT_CLAIMS.items()}
    assert judged == {
        "told=films": "reproduced",
        "told=words": "inconclusive",
        "told=another": "reproduced",
        "llm=off": "not reproduced",
    }
    assert claims[CHAT_CLAIMS["told=films"]].ours == "0.500 against 0.100"


def test_a_figure_has_a_line_a_variant(drawn):
    figure = plot_success(conversation_results.result_rows(PARAMS), conversation_results.NAMES, title="Toy: who found")
    (axes,) = figure.axes
    lines = {container.get_label(): np.asarray(container.lines[0].get_ydata(), float) for container in axes.containers}
    assert set(lines) == {*conversation_results.NAMES.values()}
    np.testing.assert_allclose(lines["films alone"], [0.025, 0.05, 0.08, 0.1])
    assert "binomial" in axes.get_xlabel() and axes.get_ylabel().endswith("(fraction)")


def test_what_is_missing_names_the_notebook(tmp_path, monkeypatch):
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path))
    with pytest.raises(MissingStage, match="01_data|11_chat|02_embeddings"):
        conversation.talker(PARAMS, 0, "ILM")


@pytest.mark.parametrize(
    ("profile", "says"), [("tooy", "did you mean|no profile"), ("ml100k", "chat.enabled is false")]
)
def test_a_profile_that_does_not_talk_is_one_line(profile, says, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path))
    assert talk.main([profile]) in (1, 2)
    said = capsys.readouterr().err
    assert said.startswith("✗ ") and said.count("\n") == 1
    assert pd.Series([said]).str.contains(says).all()


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ([], ["serve", "--port", "0", "--open"]),
        (["--in", "page"], ["serve", "--port", "0"]),
        (["--in", "terminal"], ["chat"]),
    ],
)
def test_one_talks_in_a_browser_or_in_the_terminal(monkeypatch, tmp_path, arguments, command):
    asked = []
    monkeypatch.setattr(talk, "made", lambda params: tmp_path)
    monkeypatch.setattr(talk, "library", lambda argv: asked.append(argv) or 0)
    assert talk.main(["toy", *arguments]) == 0
    assert asked == [[command[0], "--model", str(tmp_path), *command[1:]]]


def test_what_the_page_needs_is_missed_before_any_work(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "starlette", None)
    monkeypatch.setattr(talk, "made", lambda params: pytest.fail("minutes of work"))
    assert talk.main(["toy"]) == 1
    assert capsys.readouterr().err.startswith("✗ serve needs the package starlette: pip install ")
    assert talk.main(["toy", "--in", "phone"]) == 2 and "--in" in capsys.readouterr().err


def test_whoever_has_no_words_cannot_be_taught():
    """A profile whose vectors come from a file knows no fold-in, and its study leaves the notebook out."""
    from ilm_lib.study.scope import left_out

    params = PARAMS.with_(**{"embeddings.file": "mine.npz"})
    assert "11_chat" in left_out(params) and "11_chat" not in left_out(PARAMS)
