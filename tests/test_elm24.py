import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ilm_lib.data import toy
from ilm_lib.data.elm24 import TASKS, build_elm24, cut, nearest_neighbours, read_facts

ROOT = Path(__file__).parents[1]
PAPER = """summary, positive review, neutral review, five pos char., five neg char., long description, funnier, sadder,
scarier, improve, movie to viewer, pitch, criticize, convince1, convince2, convince3, dissuade1, dissuade2,
similarities, interpolation, why like nn, diff than nn, common with nn""".replace("\n", " ").split(", ")

# The shapes that real MovieLens records take.
ODD = [
    {
        "title": "Matrix, The (1999)",
        "genres": ["Sci-Fi", "Action"],
        "tags": ["Virtual-reality"],
        "overview": "In The Matrix, a hacker named Neo meets Mr. Smith, learns from a mysterious rebel that the world "
        "is a simulation, and joins a war against its rulers, who farm people for power in vast dark towers.",
    },
    {"title": "Heat (1995)", "overview": "Heat is a thief. He plans one last robbery with his crew."},
    {"title": "Toy Story (1995)", "genres": ["Animation", "Children's", "Comedy"], "tags": None},
    {"genres": ["(no genres listed)"], "tags": ["Al Pacino"]},
    {"title": None, "genres": None, "overview": None},
    {},
]


@pytest.fixture(scope="module")
def texts() -> list[dict]:
    rng_films, rng_texts = np.random.default_rng(0).spawn(2)
    return toy.draw_texts(rng_texts, toy.draw_films(rng_films, 120))


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((120, 8))


@pytest.fixture(scope="module")
def table(texts, vectors):
    return build_elm24(texts, vectors)


def test_tasks_are_the_papers_and_one_more():
    names = [task.name for task in TASKS]
    assert len(names) == len(set(names)) == 24
    assert set(names) == set(PAPER) | {"negative review"}
    wordings = [p for task in TASKS for p in task.prompts]
    assert len(set(wordings)) == 3 * 24
    for task in TASKS:
        for prompt in task.prompts:
            assert prompt.count("{film}") == 1
            assert prompt.count("{other}") == (task.inputs != "film")


def test_one_row_per_task_and_film(table):
    assert list(table.columns) == ["task", "item", "other", "prompt", "target", "teacher", "split"]
    assert len(table) == 24 * 120 and not table.duplicated(["task", "item"]).any()
    assert (table.teacher == "template").all()
    prompts = {task.name: task.prompts for task in TASKS}
    assert all(r.prompt in prompts[r.task] for r in table.itertuples())
    assert all(("{other}" in r.prompt) == (r.other >= 0) for r in table.itertuples())
    assert (table.item != table.other).all()


def test_no_film_is_in_both_splits(table):
    films = {split: set(rows.item) | set(rows.other) - {-1} for split, rows in table.groupby("split")}
    assert len(films["test"]) == 12 and len(films["train"]) == 108
    assert not films["test"] & films["train"]


def test_neighbours_are_the_closest_of_their_split(table, vectors):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = table[table.task == "why like nn"]
    for _split, part in rows.groupby("split"):
        members = part.item.to_numpy()
        for row in part.itertuples():
            others = members[members != row.item]
            assert row.other == others[(unit[others] @ unit[row.item]).argmax()]
    members = np.arange(0, 120, 2)
    assert nearest_neighbours(vectors, members, chunk=7) == nearest_neighbours(vectors, members)


def test_lengths(table):
    words = table.target.str.split().str.len()
    points = table.task.str.startswith("five")
    longest = np.where(table.task == "long description", 60, 45)
    assert (words[~points] >= 15).all() and (words <= longest).all()
    assert (table.target[points].str.count(",") == 4).all()


def test_targets_tell_films_apart_and_name_their_facts(table, texts):
    assert not table.duplicated(["task", "target"]).any()
    for row in table.itertuples():
        text = texts[row.item]
        title = text["title"][:-7]
        assert title.lower() not in row.target.lower()
        if row.other >= 0:
            assert texts[row.other]["title"][:-7].lower() not in row.target.lower()
    named = [any(g.lower() in r.target for g in texts[r.item]["genres"]) for r in table.itertuples()]
    wrong = [any(g.lower() in r.target for g in texts[(r.item + 1) % 120]["genres"]) for r in table.itertuples()]
    assert np.mean(named) > 0.85 and np.mean(wrong) < 0.6
    summaries = table[table.task == "summary"]
    assert all(texts[r.item]["overview"].split(".")[0][:30].lower() in r.target.lower() for r in summaries.itertuples())


def test_rows_per_task_is_a_cap_that_changes_no_row(table, texts, vectors):
    capped = build_elm24(texts, vectors, rows_per_task=20)
    sizes = capped.groupby(["task", "split"]).size().unstack()
    assert (sizes.train == 20).all() and (sizes.test == 12).all()
    assert capped[capped.task == "pitch"].item.tolist() != capped[capped.task == "sadder"].item.tolist()
    assert len(capped.merge(table)) == len(capped)


@pytest.mark.slow
def test_seed_and_hash_seed(texts, vectors, table):
    assert build_elm24(texts, vectors).equals(table)
    assert not build_elm24(texts, vectors, seed=1).equals(table)
    script = (
        "import numpy as np; from ilm_lib.data.elm24 import build_elm24; from tests.test_elm24 import ODD; "
        "print(build_elm24(ODD * 2, np.eye(12), test_fraction=0.3).to_json())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            check=True,
            capture_output=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": h, "PYTHONPATH": str(ROOT)},
        ).stdout
        for h in "12"
    }
    assert len(outputs) == 1


def test_records_with_missing_facts():
    table = build_elm24(ODD * 3, np.eye(18), test_fraction=0.3)
    assert len(table) == 24 * 18
    words = table[~table.task.str.startswith("five")].target.str.split().str.len()
    assert words.min() >= 15 and words.max() <= 60
    assert not table.target.str.contains(r"\bNone\b|\bnan\b|\{|\}|  |Matrix|Heat|Toy Story").any()
    toy_story = table[(table.item == 2) & (table.task == "summary")].target.item()
    assert "1990s animation, children's and comedy film" in toy_story


def test_facts():
    matrix = read_facts(ODD[0])
    assert matrix.titles == ("Matrix, The (1999)", "Matrix, The", "The Matrix")
    assert matrix.decade == "1990s" and matrix.genres == ("sci-fi", "action") and matrix.tags == ("Virtual reality",)
    assert len(matrix.sentences) == 1  # "Mr." ends no sentence
    assert {"a hacker", "a mysterious rebel", "its rulers"} <= set(matrix.keys)
    assert read_facts({}) == read_facts(ODD[4])
    assert read_facts(ODD[3]).genres == ()


def test_cut_ends_on_a_whole_phrase():
    assert cut("A thief plans one last robbery, but the crew of the bank fled.", 9) == "A thief plans one last robbery."
    assert cut("A thief plans robbery with the crew of the bank", 9) == "A thief plans robbery with the crew."


def test_bad_input_is_refused(texts, vectors):
    with pytest.raises(ValueError, match="item_vectors"):
        build_elm24(texts, vectors[:-1])
    with pytest.raises(ValueError, match="two films"):
        build_elm24(texts[:5], vectors[:5], test_fraction=0.2)
