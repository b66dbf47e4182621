"""ReDial's files: dialogues with films in their places, and one clear error for what is none."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from ilm_lib.data import __main__ as command
from ilm_lib.data.conversations import (
    TAGS,
    TEST,
    VALID,
    Answer,
    Film,
    Turn,
    as_tables,
    films_of,
    read_catalogue,
    read_redial,
)
from ilm_lib.data.lines import DataError
from ilm_lib.data.openp5 import load_openp5
from ilm_lib.data.prepare import write_openp5
from ilm_lib.model.linker import Linker
from ilm_lib.profiles import data_dir
from ilm_lib.tasks.linking import measure_linker, named_texts, said_in, with_error

RECORD = {
    "conversationId": "7",
    "initiatorWorkerId": 1,
    "respondentWorkerId": 2,
    "movieMentions": {"11": "Heat  (1995)", "12": None, "13": "Up (2009)"},
    "initiatorQuestions": {"11": {"suggested": 0, "seen": 1, "liked": 2}},
    "respondentQuestions": {
        "11": {"suggested": 1, "seen": 1, "liked": 1},
        "13": {"suggested": 1, "seen": 0, "liked": 1},
    },
    "messages": [
        {"senderWorkerId": 1, "text": "I liked @11 &amp; @12"},
        {"senderWorkerId": 2, "text": "@13is good"},
        {"senderWorkerId": 1, "text": " "},
    ],
}


def write(path, *records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def test_a_dialogue_has_films_in_their_places(tmp_path):
    (dialogue,) = read_redial(write(tmp_path / "d.jsonl", RECORD))
    assert dialogue.id == "7"
    assert dialogue.turns == (
        Turn(False, ("I liked ", Film("11", "Heat (1995)"), " & @12")),
        Turn(True, (Film("13", "Up (2009)"), "is good")),
    )
    assert [f.id for f in dialogue.turns[1].films] == ["13"]
    assert dialogue.answers["11"] == Answer(suggested=False, seen=True, liked=None), "the seeker's own counts"
    assert dialogue.answers["13"] == Answer(suggested=True, seen=False, liked=True)


def test_nobody_asked_and_no_film(tmp_path):
    none = {**RECORD, "movieMentions": [], "initiatorQuestions": [], "respondentQuestions": []}
    (dialogue,) = read_redial(write(tmp_path / "d.jsonl", none))
    assert dialogue.answers == {} and dialogue.turns[0].content == ("I liked @11 & @12",)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"messages": None}, "no dialogue of ReDial"),
        ({"messages": [{"senderWorkerId": 1}]}, "KeyError: 'text'"),
        ({"messages": [{"senderWorkerId": 3, "text": "hi"}]}, "neither initiator nor respondent"),
        ({"movieMentions": "none"}, "no dialogue of ReDial"),
        ({"initiatorQuestions": {"11": {"suggested": 0, "seen": 5, "liked": 2}}}, "KeyError: 5"),
    ],
)
def test_what_is_no_dialogue_is_refused_with_its_line(tmp_path, change, said):
    path = write(tmp_path / "d.jsonl", RECORD, {**RECORD, **change})
    with pytest.raises(DataError) as error:
        read_redial(path)
    assert f"{path}:2:" in str(error.value) and said in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_redial(tmp_path / "d.jsonl")


def data_folder(root, film="11,600,Heat,1995,A thief and a policeman."):
    """A data folder of three films: 600 of latest-small and 1M, 601 of 1M alone, 700 of ReDial alone."""
    small, large = root / "ml-latest-small", root / "openp5" / "ML1M"
    redial = root / "conversation" / "redial"
    for folder in (small, large, redial):
        folder.mkdir(parents=True)
    (small / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,600,5,1\n2,600,5,2\n", encoding="utf-8")
    (small / "movies.csv").write_text("movieId,title,genres\n600,Heat (1995),Crime\n602,Unseen (1990),Drama\n")
    with gzip.open(small / "overviews.jsonl.gz", "wt") as file:
        file.write('{"movieId": 600, "overview": "A heist."}\n')
    (large / "user_sequence.txt").write_text("1 600 601 603\n2 601 603 604\n")
    texts = [{"id": i, "title": f"Film {i} (1990)", "genres": ["Drama"]} for i in (600, 601, 603, 604)]
    (large / "item_text.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))
    with gzip.open(redial / "movies_to_movielens.csv.gz", "wt") as file:
        file.write(f"movie_id,ml_id,ml_title,ml_year,plot\n{film}\n13,700,Up,2009,A balloon.\n14,701,Old,-1,\n")
    return root


def test_the_catalogue_joins_both_releases_and_redial(tmp_path):
    catalogue = read_catalogue(data_folder(tmp_path))
    assert catalogue.ids == [600, 601, 603, 604, 700, 701], "602 has no rating and is not named"
    assert catalogue.titles == ["Heat (1995)", *(f"Film {i} (1990)" for i in (601, 603, 604)), "Up (2009)", "Old"]
    assert np.allclose(catalogue.shares, [1.0, 1.0, 1.0, 0.5, 0, 0])
    assert catalogue.plots == ["A heist.", "", "", "", "A balloon.", ""], "the plot of MovieLens comes first"
    assert catalogue.rows == {"11": 0, "13": 4, "14": 5}
    assert [h.tolist() for h in catalogue.histories] == [[0], [0], [0, 1, 2], [1, 2, 3]]
    assert catalogue.matrix().sum(0).tolist() == [[3, 2, 2, 1, 0, 0]]


def test_the_catalogue_becomes_a_dataset_with_the_films_that_nobody_rated(tmp_path):
    root = data_folder(tmp_path)
    with gzip.open(root / TAGS, "wt") as file:
        file.write("movieId,keywords\n600,heist|cool\n999,x\n")
    table, texts = as_tables(root)
    assert table["user"].tolist() == ["0", "1", "2", "2", "2", "3", "3", "3"]
    assert table["item"].tolist() == ["600", "600", "600", "601", "603", "601", "603", "604"]
    heat = {"title": "Heat (1995)", "genres": ["Crime"], "overview": "A heist.", "keywords": ["heist", "cool"]}
    assert texts["600"] == heat and texts["701"] == {"title": "Old"}
    write_openp5(tmp_path / "Films", table[table["user"] > "1"], texts, catalogue=texts)
    assert not (tmp_path / "Films" / "user_time.txt").exists(), "nothing is made up where no time is known"
    known = load_openp5(tmp_path / "Films")
    assert sorted(known.items) == ["600", "601", "603", "604"] and known.notes["unused_item_indices"] == 2
    data = load_openp5(tmp_path / "Films", whole_catalogue=True)
    assert sorted(data.items) == ["600", "601", "603", "604", "700", "701"]
    assert data.notes["items_nobody_had"] == 2 and data.notes["unused_texts"] == 0
    assert "heist" in data.item_text(data.items.index("600")) and "cool" not in data.item_text(data.items.index("600"))
    films, tags = films_of(data)
    assert tags["600"] == ["heist", "cool"] and films.shares[data.items.index("700")] == 0


def test_a_film_without_number_is_refused(tmp_path):
    with pytest.raises(DataError, match="'x' is no MovieLens id"):
        read_catalogue(data_folder(tmp_path, "11,x,Heat,1995,Plot"))


def test_linking_is_measured_on_names_put_back(tmp_path):
    catalogue = read_catalogue(data_folder(tmp_path))
    dialogues = read_redial(write(tmp_path / "d.jsonl", RECORD))
    texts = [text for text, _ in named_texts(dialogues, "with year", np.random.default_rng(0))]
    assert texts == ["I liked Heat (1995) & @12", "Up (2009) is good"]
    assert [*said_in(dialogues)] == ["I liked  |  & @12", "is good"]
    linker = Linker(catalogue.titles)
    exact = measure_linker(linker, catalogue, dialogues, "with year")
    assert (exact.named, exact.found, exact.right, exact.elsewhere) == (2, 2, 2, [])
    assert exact.precision == exact.recall == 1
    wrong = measure_linker(Linker(catalogue.titles[::-1]), catalogue, dialogues, "with year")
    assert (wrong.found, wrong.right) == (2, 0)
    nothing = measure_linker(Linker(["?"]), catalogue, dialogues, "with year")
    assert np.isnan(nothing.precision) and nothing.recall == 0


def test_one_error_a_name_and_the_first_letter_stays():
    rng = np.random.default_rng(0)
    assert all(with_error("Heat", rng)[0] == "H" for _ in range(50))
    assert {len(with_error("Heat", rng)) for _ in range(50)} == {3, 4, 5}
    assert with_error("9", rng) == "9"


def test_a_core_is_refused_for_films_that_all_stay(tmp_path, capsys):
    assert command.main(["ReDial", "--core", "5", "--folder", str(tmp_path)]) == 2
    assert "--core is not for ReDial, of which every film stays, rated or not: leave it out" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not (data_dir() / TEST).is_file(), reason="ReDial is not in the data folder")
def test_the_files_are_those_that_were_counted():
    valid, test = read_redial(data_dir() / VALID), read_redial(data_dir() / TEST)
    assert (len(valid), len(test)) == (1000, 1342)
    assert sum(len(t.films) for d in test for t in d.turns) == 8521
    assert not {d.id for d in valid} & {d.id for d in test}


@pytest.mark.skipif(not (data_dir() / TEST).is_file(), reason="ReDial is not in the data folder")
def test_the_catalogue_has_the_films_that_were_counted():
    catalogue = read_catalogue(data_dir())
    assert (len(catalogue.ids), len(catalogue.rows), int((catalogue.shares > 0).sum())) == (11_563, 5_170, 10_241)
    assert catalogue.titles[0] == "Toy Story (1995)"
