"""Words to items: what names an item, what does not, and how often both are told apart on real dialogues."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from ilm_lib.data.conversations import TEST, VALID, read_catalogue, read_redial
from ilm_lib.model.linker import Linker
from ilm_lib.model.prompts import Item
from ilm_lib.model.refusals import WrongKind, WrongValue
from ilm_lib.model.titles import key_of, names_of, one_error, words_of
from ilm_lib.profiles import data_dir
from ilm_lib.tasks.linking import measure_linker, said_in

TITLES = [
    "Toy Story (1995)",
    "Toy Story 2 (1999)",
    "Matrix, The (1999)",
    "Spider-Man (2002)",
    "Rocky II (1979)",
    "It (2017)",
    "It (1990)",
    "Saw (2004)",
    "Misérables, Les (1998)",
    "Seven (a.k.a. Se7en) (1995)",
    "Lord of the Rings: The Two Towers, The (2002)",
    "Jack (1996)",
    "2012 (2009)",
    "Finding Nemo (2003)",
    "Get Out (2017)",
    "Kill Bill: Vol. 2 (2004)",
    "Beauty and the Beast (1991)",
    "Beauty and the Beast (2017)",
    "Mother (1996)",
    "Mother! (2017)",
]
WEIGHTS = [0.4, 0.2, 0.4, 0.2, 0.1, 0.2, 0.01, 0.2, 0.01, 0.3, 0.3, 0.01, 0.1, 0.3, 0.2, 0.2, 0.3, 0.1, 0.05, 0.04]
SAID = [
    *["it was late and he saw them get out"] * 5,
    *["when it rains I saw it through"] * 120,
    "mother and father",
    "we met jack there",
]


@pytest.fixture(scope="module")
def linker() -> Linker:
    return Linker(TITLES, WEIGHTS, SAID)


def found(linker: Linker, text: str) -> list[tuple[str, str]]:
    return [(text[m.start : m.end], TITLES[m.item.row]) for m in linker.mentions(text)]


@pytest.mark.parametrize(
    "text, named, title",
    [
        ("I loved toy story", "toy story", "Toy Story (1995)"),
        ("I loved toy story 2!", "toy story 2", "Toy Story 2 (1999)"),
        ("THE MATRIX was great", "THE MATRIX", "Matrix, The (1999)"),
        ("like matrix maybe", "matrix", "Matrix, The (1999)"),
        ("any spider man film", "spider man", "Spider-Man (2002)"),
        ("any spiderman film", "spiderman", "Spider-Man (2002)"),
        ("rocky 2 and nothing else", "rocky 2", "Rocky II (1979)"),
        ("Rocky Part Two", "Rocky Part Two", "Rocky II (1979)"),
        ("les miserables made me cry", "les miserables", "Misérables, Les (1998)"),
        ("what about se7en", "se7en", "Seven (a.k.a. Se7en) (1995)"),
        ("the two towers again", "the two towers", "Lord of the Rings: The Two Towers, The (2002)"),
        ("lord of the rings please", "lord of the rings", "Lord of the Rings: The Two Towers, The (2002)"),
        ("kill bill 2", "kill bill 2", "Kill Bill: Vol. 2 (2004)"),
        ("It (1990) scared me", "It (1990)", "It (1990)"),
        ("I have seen It twice", "It", "It (2017)"),
        ("beauty and the beast, please", "beauty and the beast", "Beauty and the Beast (1991)"),
        ("Beauty and the Beast from 2017", "Beauty and the Beast from 2017", "Beauty and the Beast (2017)"),
        ("Beauty & the Beast (2018)", "Beauty & the Beast (2018)", "Beauty and the Beast (2017)"),
        ("the film “saw”", "saw", "Saw (2004)"),
        ("I liked Mother! so much", "Mother", "Mother! (2017)"),
        ("I liked Toy Stroy", "Toy Stroy", "Toy Story (1995)"),
        ("the matirx, for one", "the matirx", "Matrix, The (1999)"),
        ("kids love finding memo", "finding memo", "Finding Nemo (2003)"),
    ],
)
def test_an_item_is_found_by_its_name(linker, text, named, title):
    assert found(linker, text) == [(named, title)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t",
        "it was good, I saw it",
        "It was good",
        "get out of here",
        "Jack Black is funny",
        "my mother likes him",
        "Toy Story (2010)",  # no item is of that year
        "something new (2012)",
        "rocks and towers",
        "ﷺ 映画 кино 🎬",
    ],
)
def test_everyday_words_name_nothing(linker, text):
    assert found(linker, text) == []


def test_several_items_come_in_order_and_do_not_overlap(linker):
    text = "Toy Story 2, The Matrix and finding nemo, not Toy Story"
    mentions = linker.mentions(text)
    assert [TITLES[m.item.row] for m in mentions] == [
        "Toy Story 2 (1999)",
        "Matrix, The (1999)",
        "Finding Nemo (2003)",
        "Toy Story (1995)",
    ]
    assert all(a.end <= b.start for a, b in pairwise(mentions))


def test_the_best_known_is_meant_of_items_of_one_name():
    titles = ["The Mask (1988)", "Mask, The (1994)"]
    assert Linker(titles, [0.0, 0.3]).mentions("loved the mask")[0].item == Item(1)
    assert Linker(titles, [0.3, 0.0]).mentions("loved the mask")[0].item == Item(0)
    assert Linker(titles).mentions("loved the mask")[0].item == Item(0)
    assert Linker(titles, [0.3, 0.0]).mentions("loved the mask (1994)")[0].item == Item(1)


def test_without_texts_a_title_of_one_word_must_be_announced():
    linker = Linker(["Heat (1995)", "Toy Story (1995)"])
    assert linker.mentions("the heat is on") == []
    assert [m.item for m in linker.mentions("I have seen heat and toy story")] == [Item(0), Item(1)]


def test_a_prompt_has_items_in_the_place_of_their_names(linker):
    assert linker.link("Something like Toy Story, please") == ["Something like ", Item(0), ", please"]
    assert linker.link("Toy Story 2") == [Item(1)]
    assert linker.link("nothing here") == ["nothing here"]
    assert linker.link("") == []
    text = "Toy Story and The Matrix (1999) or it"
    pieces = iter(linker.mentions(text))
    back = (s if isinstance(s, str) else text[(m := next(pieces)).start : m.end] for s in linker.link(text))
    assert "".join(back) == text


def test_a_long_text_takes_time_in_proportion():
    """A hundred thousand characters full of names: no step looks at the whole text for every name."""
    linker = Linker(TITLES, WEIGHTS, SAID)
    text = "I saw It, Jack and the Matrix. " * 3300
    assert len(linker.mentions(text)) >= 3300


def test_what_cannot_be_linked_is_refused(linker):
    with pytest.raises(WrongKind, match="no text"):
        linker.mentions(["Toy Story"])
    with pytest.raises(WrongValue, match="0 titles"):
        Linker([])
    with pytest.raises(WrongValue, match="2 titles and 1 weights"):
        Linker(["A", "B"], [1.0])


@pytest.mark.parametrize("title", ["", "()", "(1999)", "!!!", ", The", "a.k.a.", ":", " - "])
def test_titles_that_say_nothing_name_nothing(title):
    assert Linker([title, "Toy Story"]).mentions(f"I liked {title} and toy story")[-1].item == Item(1)


def test_names_of_a_title():
    year, names = names_of("City of Lost Children, The (Cité des enfants perdus, La) (1995)")
    assert year == 1995
    assert names[:4] == [
        ("The City of Lost Children", 0),
        ("La Cité des enfants perdus", 0),
        ("City of Lost Children", 1),
        ("La Cité des enfants perdus", 1),
    ]
    assert names_of("Up") == (None, [("Up", 0), ("Up", 1)])


def test_words_and_keys():
    assert [w.key for w in words_of("L'été, Tom & Jerry’s")] == ["lete", "tom", "and", "jerrys"]
    assert key_of(["star", "wars", "episode", "iv"]) == key_of(["star", "wars", "4"]) == "starwars4"
    assert key_of(["part", "ii"]) == "part2", "nothing stands before it"
    assert key_of(["ii"]) == "ii" and key_of([]) == ""


@pytest.mark.parametrize(
    "a, b, near",
    [
        ("nemo", "memo", True),
        ("nemo", "nemmo", True),
        ("nemmo", "nemo", True),
        ("nemo", "nmeo", True),
        ("nemo", "nem", True),
        ("nemo", "nemo", False),
        ("nemo", "mmeo", False),
        ("rocky2", "rocky3", False),
        ("rocky", "rocky2", False),
        ("", "a", True),
        ("a", "b", True),
        ("", "", False),
    ],
)
def test_one_error(a, b, near):
    assert one_error(a, b) is near and one_error(b, a) is near


def test_equal_linkers_find_the_same_whatever_the_order_of_sets():
    rng = np.random.default_rng(0)
    words = [w for title in TITLES for w in title.split()] + SAID[0].split()
    texts = [" ".join(rng.choice(words, 12)) for _ in range(50)]
    one, two = Linker(TITLES, WEIGHTS, SAID), Linker(TITLES, WEIGHTS, SAID)
    assert [one.mentions(t) for t in texts] == [two.mentions(t) for t in texts]


@pytest.mark.slow
@pytest.mark.skipif(not (data_dir() / TEST).is_file(), reason="ReDial is not in the data folder")
def test_films_are_found_in_real_dialogues():
    """Bounds a little below what was measured on all test dialogues; see the README for that."""
    catalogue = read_catalogue(data_dir())
    train = [d for n, d in enumerate(read_redial(data_dir() / VALID)) if n % 5]
    linker = Linker(catalogue.titles, catalogue.shares, [*catalogue.plots, *said_in(train)])
    test = read_redial(data_dir() / TEST)[:300]
    for naming, precision, recall in (
        ("with year", 0.9, 0.98),
        ("without year", 0.88, 0.88),
        ("small letters", 0.87, 0.8),
    ):
        measured = measure_linker(linker, catalogue, test, naming)
        assert measured.precision > precision and measured.recall > recall, naming
    others = Linker(catalogue.titles[::-1], catalogue.shares[::-1], [*catalogue.plots])  # every row is another film
    assert measure_linker(others, catalogue, test[:50], "with year").recall < 0.02


def test_a_text_that_comes_again_is_not_looked_through_again(monkeypatch):
    linker = Linker(["Toy Story (1995)", "Heat (1995)"])
    first = linker.mentions("I liked Toy Story")
    first.append("of the caller")
    monkeypatch.setattr(Linker, "_mention", lambda *_: pytest.fail("it was looked through again"))
    assert linker.mentions("I liked Toy Story") == first[:1] and linker.link("I liked Toy Story")[1:] == [Item(0)]
