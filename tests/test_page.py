"""The page at / of the endpoint: what it is served with, and what it asks; `test_page_chromium.py` opens it."""

import json
import re
from dataclasses import replace
from urllib.parse import quote

import openai
import pytest
from conftest import ITEMS
from rough.markup import HOSTILE
from test_reply import PLAIN, said
from test_serve import ask, raw, served

from ilm_lib import Item
from ilm_lib.talk import serve, web
from ilm_lib.talk.cards import Cards

TITLES = [
    "Toy Story (1995)", "Toy Story 2 (1999)", "Matrix, The (1999)", "Seven (a.k.a. Se7en) (1995)", "Amélie (2001)",
    "Heat (1995)", "Heat (1986)", "The Story of Us (1999)", "<script>owned=1</script> (1999)",
    '"><img src=x onerror=owned=1>', "a\u202eb & Sons", "x" * 60, "The Toy", "2001: A Space Odyssey (1968)", "Alien",
]  # fmt: skip
IDS = [*(f"i{n}" for n in range(8)), "a>b", '"><b onclick=owned=1>', "<i>", "i 11", "i/12", "i13", "i14"]
GENRES = ["Comedy", "Drama", "Comedy, Science Fiction", "Drama"]
WEIGHTS = [*range(20, 5, -1)]


@pytest.fixture(scope="module")
def talker(new_talker):
    """A model whose titles and ids are of all kinds; the last item has no text, so that the LLM writes of it."""
    ilm = new_talker(**PLAIN)
    texts = [f"{title}. {GENRES[n % 4]}. A story of {n}." for n, title in enumerate(TITLES)]
    ilm.catalogue = replace(ilm.catalogue, titles=TITLES, item_ids=IDS, texts=[*texts[:-1], ""], weights=WEIGHTS)
    return ilm


@pytest.fixture(scope="module")
def client(talker):
    with served(talker) as client:
        yield client


def got(client, path, host="localhost"):
    """Status, headers in small letters, and body."""
    head, _, body = raw(client, f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").partition(
        "\r\n\r\n"
    )
    first, *lines = head.split("\r\n")
    return int(first.split()[1]), {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}, body


def found(client, query, limit=8):
    status, _, body = got(client, f"/v1/items?query={quote(query)}&limit={limit}")
    assert status == 200
    return [one["id"] for one in json.loads(body)["data"]]


# ---------------------------------------------------------------- what is served


@pytest.mark.parametrize(
    "path", ["/", *(f"/page/{file.name}" for file in web.FOLDER.iterdir() if file.suffix != ".html")]
)
def test_files_come_as_they_are_and_may_fetch_nothing_from_elsewhere(client, path):
    status, headers, body = got(client, path)
    assert status == 200 and body == (web.FOLDER / (path.rpartition("/")[2] or "page.html")).read_text("utf-8")
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == policy["base-uri"] == "'none'"
    assert {policy[f"{kind}-src"] for kind in ("script", "style", "connect", "img")} == {"'self'"}
    assert got(client, path, host="evil.example")[0] == 403


def test_the_page_holds_no_script_no_style_and_no_address_of_elsewhere():
    for file in web.FOLDER.iterdir():
        text = file.read_text("utf-8")
        assert text.count("\n") <= 350 and max(map(len, text.splitlines())) <= 120, file.name
        assert {*re.findall(r"https?://[^\s\"']+", text)} <= {"http://www.w3.org/2000/svg"}, file.name
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|localStorage|cookie", text
        )
    html = (web.FOLDER / "page.html").read_text("utf-8")
    assert re.findall(r"<script[^>]*>([^<]*)</script>", html) == [""] and not re.search(
        r"<style|\sstyle=|\son\w+=", html
    )


@pytest.mark.parametrize(
    "path", ["/page/", "/page/page.html", "/page/../server.py", "/page/%2e%2e/server.py", "/page.js"]
)
def test_nothing_else_is_served(client, path):
    status, _, body = got(client, path)
    assert status == 404 and json.loads(body)["error"]["code"] == "unknown_url"


# ---------------------------------------------------------------- items


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("toy st", ["i0", "i1"]),
        ("STORY", ["i7", "i0", "i1"]),  # "The Story of Us" begins with it, and is less well known
        ("the matr", ["i2"]),
        ("matrix the 1999", ["i2"]),
        ("se7en", ["i3"]),
        ("amelie", ["i4"]),
        ("Heat 1986", ["i6"]),
        ("heat", ["i5", "i6"]),
        ("matirx", ["i2"]),
        ("matir", ["i2"]),
        ("ody spa", ["i13"]),
        ("toy", ["i0", "i1", "i/12"]),
        ("nothing like it", []),
        ("?!", []),
        ("  ", ["i0", "i1", "i2"]),
    ],
)
def test_titles_are_found_while_they_are_typed(client, query, ids):
    assert found(client, query, 3) == ids


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_query_makes_it_fall(client, text):
    status, headers, body = got(client, f"/v1/items?query={quote(text, errors='replace')}")
    assert status == (200 if len(text) <= 200 else 400) and headers["x-content-type-options"] == "nosniff"
    assert headers["content-type"] == "application/json" and json.loads(body)


@pytest.mark.parametrize(
    ("path", "param"), [("?limit=0", "limit"), ("?limit=21", "limit"), ("?limit=٣", "limit"), ("?limit=", "limit"),
                        ("?query=" + "x" * 201, "query"), ("?q=toy", "q")]
)  # fmt: skip
def test_a_wrong_search_is_refused_in_a_line(client, path, param):
    status, _, body = got(client, "/v1/items" + quote(path, safe="?=&"))
    assert status == 400 and json.loads(body)["error"]["param"] == param


def test_a_card_holds_what_is_known(client, talker):
    card = Cards(talker.names()).card
    matrix = {"id": "i2", "title": "Matrix, The (1999)", "name": "The Matrix", "year": 1999}
    assert card(Item(2)) == matrix | {"genres": ["Comedy", "Science Fiction"], "text": "A story of 2."}
    assert card(Item(14)) == {"id": "i14", "title": "Alien", "name": "Alien", "year": None, "genres": [], "text": ""}
    assert json.loads(got(client, "/v1/items?query=matrix")[2])["data"] == [card(Item(2))]
    best = ask(client, "like Toy Story").ilm["recommended"]
    expected = talker.chat(said("like Toy Story")).recommended
    assert best == [card(one.item) | {"log_probability": one.log_probability} for one in expected]


def test_a_plot_is_no_list_of_genres(talker):
    names = replace(talker.names(), texts=["Toy Story (1995). In space, no one. Sad.", *[""] * (ITEMS - 1)])
    assert Cards(names).card(Item(0))["genres"] == [] and Cards(names).card(Item(0))["text"] == "In space, no one. Sad."
    bare = replace(talker.names(), texts=(), weights=())
    assert Cards(bare).card(Item(0))["text"] == "" and Cards(bare).search("toy", 2) == [Item(0), Item(1)]


# ---------------------------------------------------------------- what the protocol has for it


def test_what_was_heard_are_the_texts_and_items_of_the_last_message(client):
    heard = ask(client, said("like Toy Story 2", "<item:a>b>?", "more like <item:i5> and Alien")).ilm["heard"]
    assert [part if isinstance(part, str) else part["id"] for part in heard] == ["more like ", "i5", " and ", "i14"]
    assert heard[1]["name"] == "Heat" and heard[1]["year"] == 1995


@pytest.fixture
def asked(talker, monkeypatch):
    """What `ILM.chat` is asked."""
    calls, chat = [], talker.chat
    monkeypatch.setattr(talker, "chat", lambda messages, k, **how: calls.append(how) or chat(messages, k, **how))
    return calls


def test_rejected_and_tokens_reach_the_model(client, asked):
    first = ask(client, "like Toy Story").ilm["recommended"]
    own = {"rejected": [first[0]["id"]], "seen": [first[1]["title"]], "tokens": False, "writes": False}
    again = ask(client, "like Toy Story", ilm=own)
    assert not {one["id"] for one in first[:2]} & {one["id"] for one in again.ilm["recommended"]}
    rejected, seen = (Item(IDS.index(one["id"])) for one in first[:2])
    assert asked == [
        {"seen": [], "rejected": [], "tokens": True, "writes": True},
        {"seen": [seen], "rejected": [rejected], "tokens": False, "writes": False},
    ]
    assert again.choices[0].message.content.startswith("How about ") and "\n" not in again.choices[0].message.content


@pytest.mark.parametrize(
    ("own", "param"),
    [({"rejected": ["Allien"]}, "ilm.rejected"), ({"seen": ["Allien"]}, "ilm.seen"),
     ({"rejected": "i3"}, "ilm.rejected"), ({"rejected": [3]}, "ilm.rejected"),
     ({"tokens": "no"}, "ilm.tokens"), ({"tokens": 0}, "ilm.tokens"), ({"writes": 1}, "ilm.writes")],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_of_them_is_refused(client, own, param, stream):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "like Toy Story", ilm=own, stream=stream)
    assert caught.value.param == param


# ---------------------------------------------------------------- where it is opened


@pytest.mark.parametrize(
    ("platform", "environment", "opens"),
    [("linux", {}, False), ("linux", {"DISPLAY": ":0"}, True), ("linux", {"WAYLAND_DISPLAY": "w"}, True),
     ("linux", {"DISPLAY": ":0", "SSH_CONNECTION": "a b"}, False), ("darwin", {}, True), ("win32", {}, True)],
)  # fmt: skip
def test_a_browser_is_opened_where_there_is_a_display(monkeypatch, platform, environment, opens):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(serve.sys, "platform", platform)
    assert serve.has_display() is opens
