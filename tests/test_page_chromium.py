"""Whole dialogues in the page, in a headless Chromium: by keyboard, on a phone, and whatever the titles hold."""

import json
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import test_page
from conftest import ITEMS
from test_page import IDS

from ilm_lib import Item
from ilm_lib.model.refusals import TooLong
from ilm_lib.report import browser, check

client, talker = test_page.client, test_page.talker

KEYS = {
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "ArrowDown": (40, ""),
    "ArrowUp": (38, ""),
    "Tab": (9, ""),
    " ": (32, " "),
}


class Reader:
    """Somebody who reads a page, and types."""

    def __init__(self, tab, client):
        self.tab, self.client = tab, client

    def js(self, script):
        return self.tab.evaluate(script)

    def until(self, script, seconds=20):
        end = time.monotonic() + seconds
        while not self.js(f"Boolean({script})"):
            assert time.monotonic() < end, (script, self.texts("#talk > li")[-3:])
            time.sleep(0.02)

    def opens(self, width=1280, dark=False):
        self.tab.look(width, dark=dark)
        self.tab.open(f"http://127.0.0.1:{self.client.port}/")
        self.until("document.querySelectorAll('#openings button').length == 3")

    def press(self, *keys):
        for key in keys:
            code, text = KEYS[key]
            for kind in ("keyDown", "keyUp"):
                held = {"text": text} if text and kind == "keyDown" else {}
                self.tab.send(
                    "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **held
                )

    def types(self, where, text):
        self.js(f"document.getElementById('{where}').focus()")
        self.tab.send("Input.insertText", text=text)

    def texts(self, selector):
        return self.js(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")

    def answered(self, number):
        """Waits for so many answers, the last one whole."""
        self.until(
            f"document.querySelectorAll('.answer').length == {number} && !document.querySelector('.dots,.growing')"
        )

    def button(self, card, how):
        """Presses a button of a card, by its number, with the keyboard."""
        self.js(f"document.querySelectorAll('.card')[{card}].querySelector('.{how}').focus()")
        self.press("Enter")

    def problems(self):
        return check._console(self.tab.events)


@pytest.fixture(scope="module")
def tab():
    if browser.find_chromium() is None:
        pytest.skip("needs Chromium")
    with browser.chromium() as tab:
        yield tab


@pytest.fixture
def reader(tab, client):
    return Reader(tab, client)


@contextmanager
def listening_in(client):
    """The requests that reach the model."""
    heard, real = [], client.endpoint._replied
    client.endpoint._replied = lambda asked: heard.append(asked) or real(asked)
    try:
        yield heard
    finally:
        del client.endpoint._replied


def test_a_dialogue_by_keyboard(reader, client):
    with listening_in(client) as heard:
        reader.opens()
        reader.types("search", "toy st")
        reader.until("document.querySelectorAll('[role=option]').length == 2")
        assert reader.js("document.activeElement.getAttribute('aria-activedescendant')") == "found-0"
        reader.press("ArrowDown")
        assert reader.texts("[aria-selected=true] .name") == ["Toy Story 2 1999"]
        reader.press("Enter")
        assert reader.texts("#picked .name") == ["Toy Story 2 1999"]
        assert reader.js("document.activeElement.id + document.activeElement.value") == "search", "for the next one"
        reader.press("Tab")
        reader.tab.send("Input.insertText", text="And Alien was good. Something sadder?")
        assert reader.js("document.activeElement.id") == "say"
        reader.press("Enter")
        reader.answered(1)
        assert reader.texts(".user .name") == ["Toy Story 2 1999", "Alien"], "a title that was typed is an item too"
        assert reader.texts("#lists .chip .name") == ["Toy Story 2 1999", "Alien"]
        assert reader.texts("#lists q") == ["And Alien was good. Something sadder?"]
        cards = reader.js("[...document.querySelectorAll('.card')].map(e => e.dataset.id)")
        assert len({*cards}) == 3 and not {*cards} & {"i1", "i14"}
        shown = reader.texts(".card .why")
        assert shown == [f"A story of {IDS.index(one)}." for one in cards], "genres stand above it"
        assert reader.texts(".card .lead") == ["How about", "Or", "You could also try"]

        reader.button(0, "rejected")
        reader.answered(2)
        assert "rejected" in reader.js("document.activeElement.className"), "the focus stays where it was"
        reader.button(4, "seen")
        reader.answered(3)
        four = reader.js("document.querySelectorAll('.card')[4].dataset.id")
        assert (heard[-1].rejected, heard[-1].seen) == ([cards[0]], [four])
        assert [turn["content"][-1] for turn in heard[-1].messages[::2]][1:] == [" is not for me.", " already."]
        assert heard[-1].messages[1]["content"][1] == Item(IDS.index(cards[0])), "a reply is sent back with its items"

        reader.button(6, "taken")
        assert reader.texts(".closing .says")[0].startswith("Enjoy ") and len(heard) == 3
        reader.types("say", "Another one, please")
        reader.press("Enter")
        reader.answered(5)
        assert [turn["role"] for turn in heard[-1].messages] == ["user", "assistant"] * 4 + ["user"]
        assert heard[-1].messages[-3]["content"][0] == "I’ll take "
        six = reader.js("document.querySelectorAll('.card')[6].dataset.id")
        assert {*heard[-1].seen} == {four, six} and heard[-1].rejected == [cards[0]]
        every = reader.js("[...document.querySelectorAll('.card')].map(e => e.dataset.id)")
        assert len({*every}) == len(every) == 12
    assert reader.problems() == []


def test_what_is_known_can_be_taken_away(reader, client):
    with listening_in(client) as heard:
        reader.opens()
        reader.types("say", "I loved Heat (1995), and sad ones")
        reader.press("Enter")
        reader.answered(1)
        reader.button(1, "rejected")
        reader.answered(2)
        reader.button(1, "rejected")  # pressed again, it is taken back, and nothing is asked
        assert len(heard) == 2 and reader.texts(".card [aria-pressed=true]") == []
        assert reader.texts("#lists h3") == ["You named", "In your words"]
        reader.js("document.querySelector('#lists .chip .cross').click()")
        assert reader.texts(".user p") == ["I loved …, and sad ones", "…"]
        reader.js("document.getElementById('again').click()")
        reader.answered(2)
        assert heard[-1].rejected == [] and [*map("".join, (m["content"] for m in heard[-1].messages[::2]))] == [
            "I loved …, and sad ones",
            "…",
        ]
        reader.js("document.querySelector('#lists .quotes .cross').click()")
        assert reader.js("document.getElementById('lists').innerText") == "Nothing yet."
        reader.js("document.getElementById('anew').click()")
        assert reader.texts("#talk > li") == [] and reader.js("document.getElementById('start').checkVisibility()")
        reader.js("document.querySelectorAll('#openings button')[1].focus()")
        reader.press("Enter")
        reader.answered(1)
        assert reader.js("document.activeElement.id") in ("say", "talk")
        assert heard[-1].messages == [{"role": "user", "content": ["I liked ", Item(1), " and ", Item(2), "."]}]
    assert reader.problems() == []


def test_the_switch_shows_the_same_without_item_tokens(reader, client):
    with listening_in(client) as heard:
        reader.opens()
        reader.js("document.querySelector('#openings button').click()")
        reader.answered(1)
        reader.js("document.getElementById('compare').click()")
        reader.until("document.querySelectorAll('.without li').length == 3")
        assert [(one.tokens, one.writes) for one in heard] == [(True, True), (False, False)]
        assert heard[0].messages == heard[1].messages
        reader.types("say", "funnier")
        reader.press("Enter")
        reader.until("document.querySelectorAll('.without li').length == 6")
        assert [one.tokens for one in heard[2:]] == [True, False] and heard[2].messages == heard[3].messages
        reader.js("document.getElementById('compare').click()")
        assert reader.texts(".without") == []
    assert reader.problems() == []


@pytest.mark.parametrize(
    ("content", "leads", "whys"),
    [
        ("How about <item:a>? It is a sad story.\nOr <item:b>, which is sad.",
         ["How about", "Or"], ["It is a sad story.", "It is sad."]),
        ("How about <item:a>: Drama. A man.\nOr <item:b>: Drama.", ["How about", "Or"], ["A man.", "Drama."]),
        ("How about <item:a>, <item:b>?", ["How about", ""], ["", ""]),
        ("Like <item:x>, but sad.\nHow about <item:a>? it", ["Like Xenon, but sad.\nHow about"], ["It"]),
        ("How about <item:a>? It is", ["How about"], ["It is"]),
        ("How about ", [], []),
        ("", [], []),
    ],
)  # fmt: skip
def test_a_reply_is_cut_into_what_it_says_of_each(reader, content, leads, whys):
    reader.opens()
    cut = """(async () => {
        const { Talk } = await import("/page/talk.js");
        const cards = ["a", "b"].map((id) => ({ id, name: id.toUpperCase(), genres: ["Drama"] }));
        const talk = new Talk();
        talk.names.set("x", "Xenon");
        const { found } = talk.pieces({ cards, content: CONTENT });
        return [found.map((one) => one.lead), found.map((one) => one.why)] })()"""
    assert reader.js(cut.replace("CONTENT", json.dumps(content))) == [leads, whys]


def test_an_answer_about_an_item_shows_it_as_one(reader):
    reader.opens()
    said = """(async () => {
        const { Talk } = await import("/page/talk.js");
        const talk = new Talk();
        talk.names.set("x", "Xenon").set("a", "A < B");
        const content = "<item:x>: Drama. Like <item:a>.\\n<item:none>: sad";
        return [talk.pieces({ cards: [], content }).says, talk.plain(content)] })()"""
    x, a = {"id": "x", "name": "Xenon"}, {"id": "a", "name": "A < B"}
    parts = [x, ": Drama. Like ", a, ".\n<item:none>: sad"]
    assert reader.js(said) == [parts, "Xenon: Drama. Like A < B.\n<item:none>: sad"]


def test_titles_are_text(reader):
    reader.opens()
    for query, name in (("script", "<script>owned=1</script>"), ("onerror", '"><img src=x onerror=owned=1>')):
        reader.types("search", query)
        reader.until(f"document.querySelector('[role=option] bdi')?.textContent == {json.dumps(name)}")
        reader.press("Enter")
    reader.press("Enter")  # nothing more is looked for: it is sent
    reader.answered(1)
    assert reader.texts(".user bdi") == ["<script>owned=1</script>", '"><img src=x onerror=owned=1>']
    for number in range(5):
        reader.button(3 * number, "rejected")
        reader.answered(number + 2)
    assert len({*reader.js("[...document.querySelectorAll('.card')].map(e => e.dataset.id)")}) == ITEMS - 2
    assert reader.texts(".answer .says") == ["You have named everything that I know."]
    held = (
        "document.querySelectorAll('main script, main img, b[onclick], [onerror], bdi *, main i:not(.dots i)').length"
    )
    assert reader.js(held) == 0 and reader.js("typeof owned") == "undefined"
    assert reader.problems() == []


def test_what_fails_is_said_and_can_be_tried_again(reader, client, talker, monkeypatch):
    def refused(*_, **__):
        raise TooLong("the prompt is too long")

    def broken(*_):
        yield "How about "
        raise RuntimeError("secret")

    reader.opens()
    net = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    reader.tab.send("Network.enable")
    reader.tab.send("Network.emulateNetworkConditions", offline=True, **net)
    reader.types("say", "like Heat (1995)")
    reader.press("Enter")
    reader.until("document.querySelector('.failure')")
    assert reader.texts(".failure p") == ["The server does not answer. Is it still running?"]
    reader.tab.send("Network.emulateNetworkConditions", offline=False, **net)
    with monkeypatch.context() as patch:
        patch.setattr(talker, "chat", refused)
        reader.js("document.querySelector('.failure button').click()")
        reader.until("document.querySelector('.failure p')?.textContent.startsWith('This conversation is too long')")
    with monkeypatch.context() as patch:  # midway, when cards are there already
        patch.setattr("ilm_lib.model.reply._written", broken)
        reader.js("document.querySelector('.failure button').click()")
        reader.until("document.querySelector('.failure p')?.textContent.startsWith('The server failed')")
        assert reader.texts(".card") == []
    assert reader.texts(".user p") == ["like Heat 1995"], "it was said once"
    reader.js("document.querySelector('.failure button').focus()")
    reader.press("Enter")
    reader.answered(1)
    assert reader.js("document.activeElement.id") in ("say", "talk"), "the focus is not lost with the button"
    assert reader.texts(".failure") == [] and len(reader.texts(".card")) == 3


def test_who_answers_while_it_writes_is_heard_at_once(reader, client, talker, monkeypatch):
    written = talker.chat

    def slow(messages, k, **how):
        reply = written(messages, k, **how)
        parts = reply._parts
        reply._parts = (part for part in parts if time.sleep(0.3) is None)
        return reply

    monkeypatch.setattr(talker, "chat", slow)
    with listening_in(client) as heard:
        reader.opens()
        reader.types("say", "like Heat (1995)")
        reader.press("Enter")
        reader.until("document.querySelectorAll('.card').length == 3")
        reader.button(2, "seen")
        monkeypatch.setattr(talker, "chat", written)
        reader.answered(2)
        first, _ = reader.js("[...document.querySelectorAll('.answer')].map(a => [...a.querySelectorAll('.card')]"
                             ".map(e => e.dataset.id))")  # fmt: skip
        shown = {part for part in heard[-1].messages[1]["content"] if isinstance(part, Item)}
    assert shown == {Item(IDS.index(one)) for one in first}, "what was on the page was named"
    assert reader.problems() == []


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_and_can_be_read(reader, width, dark):
    probe = (Path(browser.__file__).parent / "probe.js").read_text("utf-8").replace("'main *'", "'body *'")
    assert "'body *'" in probe and "< 3.5" in probe
    probe = probe.replace("< 3.5", "< 4.5")
    reader.opens(width, dark)
    reader.js("document.getAnimations().forEach(a => a.finish())")
    assert reader.js(probe) == []
    reader.types("search", "s")
    reader.until("document.querySelectorAll('[role=option]').length > 3")
    assert reader.js(probe) == []
    reader.press("Enter")
    reader.press("Enter")
    reader.answered(1)
    reader.button(0, "rejected")
    reader.answered(2)
    reader.button(4, "taken")
    reader.js("document.getElementById('compare').click()")
    reader.until("document.querySelectorAll('.without li').length == 3")
    reader.js("document.getAnimations().forEach(a => a.finish())")
    assert reader.js(probe) == []
    small = """[...document.querySelectorAll('button, input, a:not(.skip)')].filter(e => e.checkVisibility())
        .map(e => [e.outerHTML.slice(0, 80), e.getBoundingClientRect()])
        .filter(([, box]) => box.height < 24 || box.width < 24)"""
    assert reader.js(small) == [], "a finger finds it"
    named = "[...document.querySelectorAll('button, input, textarea')].filter(e => e.checkVisibility()).every(e => "
    assert reader.js(named + "e.textContent.trim() || e.ariaLabel || e.labels?.length)")
    assert reader.problems() == []
