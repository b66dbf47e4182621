"""Names of one's own data to items and users, and back."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ilm_lib.model.catalogue import Catalogue
from ilm_lib.model.ilm import ILM
from ilm_lib.model.indexing import Indexing
from ilm_lib.model.prompts import Item, User

ITEMS = {
    "tt0114709": "Toy Story (1995)",
    "tt0120363": "Toy Story 2 (1999)",
    "tt0133093": "Matrix, The (1999)",
    "tt0113277": "Heat (1995)",
    "tt0093164": "Heat (1986)",
    "größe-ü": "Größe 🦊 „zwei“",
    "Amélie": "tt0114709",  # a title that is another item's id
    "x9": "x9",  # no title of its own
    "a": "Twins",
    "b": "Twins",
}
USERS = ["alice", "bob", "zoë"]


@pytest.fixture
def catalogue():
    indexing = Indexing("Mine", np.arange(len(USERS)) + 1, np.arange(len(ITEMS)) + 1001)
    templates = ("{dataset} user_{user_id} {history} ?", "{dataset} user_{user_id} ?", "{dataset} {target}")
    return Catalogue(indexing, list(ITEMS), USERS, list(ITEMS.values()), *templates)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("Toy Story (1995)", 0),
        ("Toy Story", 0),
        ("  toy  STORY ", 0),
        ("toy story 2", 1),
        ("The Matrix", 2),
        ("matrix, the (1999)", 2),
        ("Heat (1986)", 4),  # the year tells them apart
        ("tt0113277", 3),
        ("größe-ü", 5),
        ("GRÖSSE 🦊 „zwei“", 5),
        ("tt0114709", 0),  # the id, and not the title that reads the same
        ("Amélie", 6),
        ("x9", 7),
        ("a", 8),
    ],
)
def test_items_by_title_and_id(catalogue, name, row):
    item = catalogue.item(name)
    assert item == Item(row)
    assert catalogue.id(item) == list(ITEMS)[row] and catalogue.title(item) == list(ITEMS.values())[row]
    assert catalogue.item(catalogue.id(item)) == item


def test_items_named_in_a_text(catalogue):
    assert catalogue.link("I like toy story 2, and The Matrix") == ["I like ", Item(1), ", and ", Item(2)]
    assert catalogue.link("Heat (1986), then Heat (1995)") == [Item(4), ", then ", Item(3)]
    assert catalogue.link("nothing of ours") == ["nothing of ours"]


def test_what_items_are_known_by_tells_which_is_meant(catalogue):
    assert catalogue.link("I like Heat") == ["I like ", Item(3)]
    known = replace(catalogue, weights=[1.0] * 4 + [9.0] + [1.0] * 5)
    assert known.link("I like Heat") == ["I like ", Item(4)]
    rare = replace(catalogue, titles=[*catalogue.titles[:-1], "Other"], texts=["nothing of the kind"] * 10)
    said_daily = replace(rare, texts=["the twins all day"] * 10)
    assert rare.link("the twins all day") == ["the ", Item(8), " all day"]
    assert said_daily.link("the twins all day") == ["the twins all day"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Heat", r"2 items are called 'Heat': 'Heat \(1995\)' \(id 'tt0113277'\), 'Heat \(1986\)' .*id of one"),
        ("Twins", r"2 items are called 'Twins': .*\(id 'a'\), .*\(id 'b'\)"),
        ("Toy Stori", r"no item has the title or id 'Toy Stori'\. Close: 'Toy Story \(1995\)', 'Toy Story 2"),
        ("tt0133094", r"no item has the title or id 'tt0133094'\. Close: .*id 'tt0133093'"),
        ("q", r"no item has the title or id 'q'\. There are 10 items, 'Toy Story \(1995\)' \(id 'tt0114709'\) for one"),
        ("", r"no item has the title or id ''"),
    ],
)
def test_errors_help(catalogue, name, message):
    with pytest.raises(LookupError, match=message) as caught:
        catalogue.item(name)
    assert "\n" not in str(caught.value)


def test_users(catalogue):
    for row, name in enumerate(USERS):
        assert catalogue.user(name) == User(row) and catalogue.id(User(row)) == name
    with pytest.raises(LookupError, match="no user has the id 'alicia'. Close: 'alice'"):
        catalogue.user("alicia")
    with pytest.raises(LookupError, match="There are 3 users"):
        catalogue.user("Q")


def test_what_is_no_name_is_refused(catalogue):
    with pytest.raises(TypeError, match=r"item 3 is no text: give an id as text, '3', or use Item\(3\) for a row"):
        catalogue.item(3)
    with pytest.raises(TypeError, match=r"User\(3\) for a row"):
        catalogue.user(3)
    with pytest.raises(IndexError, match=r"rows run from 0 to 9"):
        catalogue.title(Item(len(ITEMS)))
    with pytest.raises(IndexError, match=r"rows run from 0 to 2"):
        catalogue.id(User(3))


def test_json_keeps_every_name(catalogue):
    catalogue = replace(catalogue, texts=[f"text {n}" for n in range(10)], weights=[0.5] * 10)
    again = Catalogue.from_json(json.loads(json.dumps(catalogue.to_json(), ensure_ascii=False)))
    assert again.texts == catalogue.texts and again.weights == catalogue.weights
    assert again.to_json() == catalogue.to_json()
    assert [again.id(Item(i)) for i in range(len(ITEMS))] == list(ITEMS)
    assert [again.id(User(u)) for u in range(3)] == USERS
    assert again.indexing.answer(again.target, 2) == catalogue.indexing.answer(catalogue.target, 2)
    old = {k: v for k, v in catalogue.to_json().items() if not k.endswith("_ids")}
    with pytest.raises(ValueError, match="save the model anew"):
        Catalogue.from_json(old)


def test_a_large_catalogue_still_says_what_is_close(catalogue):
    many = [f"item-{n}" for n in range(150_000)]
    big = Catalogue(catalogue.indexing, [*many, "zz-top"], USERS, [*many, "ZZ Top"], "", "", "")
    with pytest.raises(LookupError, match="'ZZ Top'"):
        big.item("zz tops")


def test_a_model_takes_and_gives_names(new_ilm, tmp_path):
    ilm = new_ilm("mlp")
    ilm.save_pretrained(tmp_path / "model")
    again = ILM.from_pretrained(tmp_path / "model")
    assert again.item("film 3") == again.item("i3") == Item(3) and again.user("u2") == User(2)
    assert (again.title(Item(3)), again.id(Item(3)), again.id(User(2))) == ("Film 3", "i3", "u2")
    by_row = ilm.recommend(user=User(2), history=[Item(3), Item(8)], k=4)
    by_name = again.recommend(user="u2", history=["Film 3", "i8"], k=4)
    assert len(by_row) == 4 and [r.item for r in by_name] == [r.item for r in by_row]
    assert all((r.id, r.title) == (f"i{r.item.row}", f"Film {r.item.row}") for r in by_row)
    ilm.catalogue = None
    with pytest.raises(ValueError, match="no catalogue"):
        ilm.item("Film 3")
