"""Recorded dialogues in the study: what teaches, what asks, and which dialogues are shown."""

import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest

from ilm_lib.data.conversations import TEST, TO_MOVIELENS, VALID, Dialogue, Film, Turn, read_catalogue
from ilm_lib.data.lines import DataError
from ilm_lib.model.prompts import Item
from ilm_lib.profiles import load_params
from ilm_lib.report.results import check_results
from ilm_lib.study import conversation_results as shown
from ilm_lib.study import recorded, talk
from ilm_lib.study.artifacts import SourceFile
from ilm_lib.tasks.conversation import Question, questions_of, target_ranks
from ilm_lib.tasks.dialogues import scores, talks_of

PARAMS = load_params("redial")
ITEMS = 15


def film(row):
    return Film(f"f{row}", f"Film {row}")


ROWS = {f"f{row}": row for row in range(ITEMS)}
TOLD = [
    Dialogue(
        "1",
        (
            Turn(False, ("I liked ", film(3))),
            Turn(True, (film(7), " or ", film(2))),
            Turn(False, ("No",)),
            Turn(True, (film(7), film(1))),
        ),
        {},
    ),
    Dialogue("2", (Turn(False, ("Something sad",)), Turn(True, (film(4),))), {}),
]


def test_ranks_of_both_protocols_come_from_one_reading(new_talker, monkeypatch):
    ilm, read = new_talker(), []
    monkeypatch.setattr(recorded, "scores", lambda *a, **k: read.append(1) or scores(*a, **k))
    found = recorded.ranked(ilm, TOLD, ROWS)
    assert len(read) == 1
    for protocol in ("strict", "usual"):
        asked = questions_of(TOLD, ROWS, protocol)
        alone = target_ranks(scores(ilm, talks_of(TOLD, ROWS, asked)), asked, protocol)
        assert found[protocol].tolist() == alone.tolist()
    assert (len(found["strict"]), len(found["usual"])) == (4, 5), "what was named before is asked by `usual` alone"


def test_strangers_words_change_what_is_found(new_talker):
    ilm = new_talker(tokens=False)
    own, other = (recorded.ranked(ilm, TOLD, ROWS, strangers=strangers) for strangers in (False, True))
    assert (own["usual"] != other["usual"]).any()


def test_every_fifth_dialogue_chooses_and_none_of_them_teaches(tmp_path):
    def record(number):
        said = [{"senderWorkerId": 1, "text": f"number {number}"}, {"senderWorkerId": 2, "text": "@11"}]
        empty = {"initiatorQuestions": {}, "respondentQuestions": {}}
        about = {"conversationId": str(number), "initiatorWorkerId": 1, "respondentWorkerId": 2, **empty}
        return {**about, "movieMentions": {"11": "Heat (1995)"}, "messages": said}

    (tmp_path / "d.jsonl").write_text("".join(json.dumps(record(n)) + "\n" for n in range(11)))
    with gzip.open(tmp_path / "films.csv.gz", "wt") as file:
        file.write("movie_id,ml_id,ml_title,ml_year,plot\n11,600,Heat,1995,A heist.\n12,999,Gone,1990,\n")
    films = SourceFile(tmp_path / "films.csv.gz")
    data = SimpleNamespace(items=["601", "600"])
    assert recorded.rows_of(films, data) == {"11": 1}, "a film that the data do not have has no row"
    teach, dev, asked = recorded.lessons(SourceFile(tmp_path / "d.jsonl"), films, data)
    said = lambda talks: {talk.turns[0]["content"][0] for talk in talks}
    assert said(dev) == {"number 0", "number 5", "number 10"} and len(teach) == 8 and not said(dev) & said(teach)
    assert [q.target for q in asked] == [1, 1, 1] and dev[0].turns[1]["content"] == [Item(1)]


def test_those_that_teach_and_those_that_ask_are_other_files():
    teach, ask = recorded.to_teach(PARAMS), recorded.to_ask(PARAMS)
    assert teach["dialogues"].path.parts[-1] == VALID.name and ask["dialogues"].path.parts[-1] == TEST.name
    assert teach["films"].path.name == ask["films"].path.name == TO_MOVIELENS.name
    assert recorded.to_teach(load_params("toy")) == {}


def test_what_is_missing_is_said_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ILM_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path / "runs"))
    assert talk.main(["redial", "--in", "terminal"]) == 1
    said = capsys.readouterr().err
    for words in (
        "openp5/ReDial is missing: `",
        "-m ilm_lib.data ReDial` makes it; ",
        "names the files of conversations",
    ):
        assert words in said
    folder = tmp_path / "openp5" / "ReDial"
    folder.mkdir(parents=True)
    (folder / "user_sequence.txt").write_text("ann 1 2 3\n")
    assert talk.main(["redial", "--in", "terminal"]) == 1
    said = capsys.readouterr().err
    assert (
        f"{VALID.name}, " in said and f"{TO_MOVIELENS.name} are missing: " in said and "ReDial is missing" not in said
    )
    assert not (tmp_path / "runs").exists()
    with pytest.raises(DataError, match="ml-latest-small: is missing. .*names the files of conversations"):
        read_catalogue(tmp_path)


@pytest.fixture
def drawn(monkeypatch):
    """40 dialogues of two questions; the whole model finds half, words alone a tenth."""
    asked = [Question(n // 2, 1, n % 7, tuple(range(n % 5))) for n in range(80)]
    share = {"": 0.5, "told=words": 0.1, "told=films": 0.4, "told=another": 0.0, "llm=off": 0.5}

    def ranks(params, seed, method, variant, *, build=False):
        drawn = np.random.default_rng(0).permutation(80)
        one = np.where(drawn < 80 * share[variant], 1 + drawn % 3, 100 + drawn)
        return {"strict": one, "usual": np.append(one, 1)}

    found = lambda params, seed, variant, *, build=False: np.ones((30, 5), bool)
    monkeypatch.setattr(shown, "recorded_ranks", ranks)
    monkeypatch.setattr(shown, "found", found)
    monkeypatch.setattr(recorded, "questions", lambda params, protocol: asked)
    monkeypatch.setattr(shown.replies, "measured", lambda *args, **kwargs: {"": {"links_valid": (1.0, 80)}})
    return asked


def test_rows_and_tables_hold_both_protocols_and_all_methods(drawn):
    rows = check_results(shown.result_rows(PARAMS))
    recall = rows[~rows["task"].isin(["simulated", "written"])]
    assert set(recall["method"]) == {"MLP", "ILM-rand", "ILM"} and set(recall["history"]) == {"excluded", "kept"}
    assert set(recall[recall["method"] != "ILM"]["variant"]) == {""}
    strict = shown.recorded_table(rows, "strict").set_index(["method", "told"])
    assert strict.loc[("ILM", "words and films"), "R@10"] == 0.5 and strict.loc[("ILM", "words alone"), "R@10"] == 0.1
    assert shown.table(rows).set_index("told").loc["words and films"].tolist() == [1.0] * 5
    by = shown.by_films_named(PARAMS, 0).set_index("told")
    assert by.loc["questions"].tolist() == [16, 16, 16, 32]


def test_claims_are_judged_over_dialogues(drawn):
    claims = shown.chat_claims(PARAMS)
    assert len(claims) == 8
    verdicts = [claim.verdict for claim in claims[4:]]
    assert verdicts[1:3] == ["reproduced", "reproduced"] and verdicts[3] == "inconclusive"
    assert "40 dialogues" in claims[5].evidence and claims[5].ours == "0.500 against 0.100"


def test_what_is_shown_follows_from_the_ranks(drawn, monkeypatch):
    turns = (Turn(False, ("Hello",)), Turn(True, (film(1),)))
    monkeypatch.setattr(recorded, "asking", lambda params: ([Dialogue(str(n), turns, {}) for n in range(40)], {}))
    counts = SimpleNamespace(item_counts=lambda: np.arange(600))
    monkeypatch.setattr(shown.inputs, "dataset", lambda params: counts)
    asked = [Question(n, 1, 300 + n, ()) for n in range(40)]
    monkeypatch.setattr(recorded, "questions", lambda params, protocol: asked)
    rank = {"": [1, 2, 3, *[50 + n for n in range(37)]], "told=words": [900, 5, 70, *[9] * 37]}
    rank["told=films"] = [800, 80, 4, *[9] * 37]
    ranks = lambda params, seed, method, variant: {"strict": np.array(rank[variant])}
    monkeypatch.setattr(shown, "recorded_ranks", ranks)
    chosen = {why: question.dialogue for why, question in shown.memorable(PARAMS, 0).items()}
    assert chosen == {"words and films together": 0, "the words tell": 1, "the films tell": 2, "it fails": 39}
