"""`python -m ilm_lib chat`: a conversation in lines, on a terminal and from a pipe."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import test_reply

from ilm_lib import Item
from ilm_lib.__main__ import main
from ilm_lib.model.pen import Pen
from ilm_lib.model.refusals import TooLong
from ilm_lib.talk.marks import printable
from ilm_lib.talk.terminal import HELP, Talk, typed

talker, said = test_reply.talker, test_reply.said


class Screen(io.StringIO):
    def isatty(self):
        return True


def talk(ilm, *lines, k=2, out=None):
    """The conversation of these lines, and all that was written."""
    talk = Talk(ilm, k, out or io.StringIO())
    talk.follow(iter(f"{line}\n" for line in lines))
    return talk, talk.out.getvalue()


@pytest.fixture(scope="module")
def folder(talker, tmp_path_factory):
    return talker.save_pretrained(tmp_path_factory.mktemp("talks") / "tiny-talker")


@pytest.fixture
def piped(monkeypatch, capsys):
    """The exit code, and what stands on stdout and stderr after lines from a pipe."""

    def run(text, *arguments):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        code = main(["chat", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_it_says_what_the_library_says_and_lists_it(talker):
    reply = talker.chat(said("I liked Film 3 and <3"), k=2)
    _, out = talk(talker, "I liked Film 3 and <3")
    listed = "".join(f"  {n}. {one.title}\n" for n, one in enumerate(reply.recommended, 1))
    assert out == printable(reply.text) + "\n" + listed + "\n" and len(reply.recommended) == 2


def test_a_reply_is_written_as_it_comes(talker):
    class Slow(io.StringIO):
        flushed = ()

        def flush(self):
            self.flushed = (*self.flushed, self.getvalue())

    out = Slow()
    talk(talker, "like Film 3", k=1, out=out)
    assert out.flushed[0] == "How about " and len(out.flushed) > 5


def test_nothing_that_was_named_comes_again_until_it_starts_anew(talker):
    all_of_it, _ = talk(talker, "Something like <item:i3>", "another", "no", k=3)
    own = [part for turn in all_of_it.messages for part in turn["content"] if isinstance(part, Item)]
    assert len(own) == 10 == len({*own}) and own[0] == Item(3)
    assert [turn["role"] for turn in all_of_it.messages] == ["user", "assistant"] * 3
    anew, out = talk(talker, "Something like Film 3", "/again", "a western")
    assert len(anew.messages) == 2 and "anew" in out
    assert [one.item for one in anew.listed] == [one.item for one in talker.chat(said("a western"), k=2).recommended]


def test_what_was_seen_is_left_out_by_title_id_or_number(talker):
    first, _ = talk(talker, "a western", k=3)
    one, two, three = (found.item for found in first.listed)
    title, raw_id = talker.title(two).lower(), talker.id(three)
    again, out = talk(talker, "a western", "/seen 1", f"/seen {title}", f"/seen {raw_id}", "/seen 1", "/seen", k=3)
    assert again.seen == [one, two, three]
    assert out.endswith(f"Left out: {', '.join(map(talker.title, again.seen))}.\n")
    again.follow(iter(["/again", "a western"]))
    assert not {found.item for found in again.listed} & {one, two, three} and len(again.listed) == 3
    assert "Nothing is left out" in talk(talker, "/seen")[1]


def test_what_is_not_for_me_is_left_out_and_not_taken_for_liked(talker):
    told, out = talk(talker, "I liked Film 3 and Film 4", "/no film 4", "/no 1", "/no 1", "another", "/seen")
    first, _ = talk(talker, "I liked Film 3 and Film 4")
    assert told.rejected == [Item(4), first.listed[0].item] and not told.seen
    expected = talker.chat(told.messages[:3], k=2, rejected=told.rejected, writes=False).recommended
    assert told.listed == expected and not {one.item for one in expected} & {*told.rejected}
    assert f"Left out: {', '.join(map(talker.title, told.rejected))}.\n" in out
    told.follow(iter(["/again", "I liked Film 4", "/no"]))
    assert told.rejected == [Item(4), first.listed[0].item] and Item(4) not in {one.item for one in told.listed}


@pytest.mark.parametrize("line", ["/seen Fillm", "/no Fillm", "/no 3", "/seen 1", "/seen 9999999999999", "half \ud800"])
def test_what_is_refused_is_a_line_and_it_goes_on(talker, line):
    conversation, out = talk(talker, line, "a western")
    first, _, rest = out.partition("\n")
    assert first.startswith("error: ") and rest.startswith("How about ") and len(conversation.messages) == 2


def test_a_reply_that_is_refused_midway_was_never_said(talker, monkeypatch):
    def refuses(pen, prompt):
        yield " the"
        raise TooLong("the prompt is 600 tokens long")

    monkeypatch.setattr(Pen, "sentence", refuses)
    conversation, out = talk(talker, "a western")
    assert "How about" in out and out.count("\nerror: ") == 1 and "tokens long" in out
    assert conversation.messages == [] and conversation.listed == []


def test_commands_are_found_and_others_are_not(talker):
    conversation, out = talk(talker, "/help", "", "   ", "/sen Film 3", "/quit", "a western")
    assert out == f"{HELP}\nThere is no command /sen; /help lists them.\n" and not conversation.messages
    assert all(name in HELP for name in [*conversation._commands, "/quit"])
    assert talk(talker, "/exit", "a western")[1] == ""


def test_titles_are_bold_on_a_terminal_alone(talker, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    first = talker.chat(said("a western"), k=2).recommended[0].title
    assert f"How about \033[1m{first}\033[0m?" in talk(talker, "a western", out=Screen())[1]
    plain = talk(talker, "a western")[1]
    assert "\033" not in plain
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert talk(talker, "a western", out=Screen())[1] == plain


def test_a_title_cannot_command_the_terminal(talker, monkeypatch):
    evil = "\033]0;gone\a\033[2J\x9b31mFilm\r\u202e ½ 薬 👨\u200d👩"
    monkeypatch.setitem(vars(talker.catalogue), "spoken", [evil] * 15)
    _, out = talk(talker, "a western", "/seen 1", "/seen", out=Screen())
    shown = "]0;gone[2J31mFilm ½ 薬 👨\u200d👩"
    assert out.count(shown) == 6 and not {"\a", "\r", "\x9b", "\u202e"} & {*out} and printable("a\ud800b") == "ab"
    assert {*out.split("\033")[1:]} and all(part.startswith(("[1m", "[0m")) for part in out.split("\033")[1:])


# ---------------------------------------------------------------- the command


def test_a_scripted_conversation(piped, folder, talker):
    code, out, err = piped("a western\nanother\n/quit\n", "--model", folder, "--k", 1, "--device", "cpu")
    assert code == 0 and "Traceback" not in err and out == talk(talker, "a western", "another", k=1)[1]
    assert piped("", "--model", folder)[:2] == (0, "")
    code, out, _ = piped("no end of line", "--model", folder, "--k", 1)
    assert code == 0 and out.startswith("How about ")


def test_somebody_who_types_is_told_how_and_can_leave(monkeypatch, capsys, folder):
    lines = iter(["a western"])

    def typing(prompt):
        assert prompt == "> "
        if (line := next(lines, None)) is None:
            raise leaves
        return line

    monkeypatch.setattr("builtins.input", typing)
    monkeypatch.setattr("sys.stdin", Screen())
    for leaves in (EOFError, KeyboardInterrupt):
        lines = iter(["a western"])
        assert main(["chat", "--model", str(folder), "--k", "1"]) == 0
        out, err = capsys.readouterr()
        assert out.startswith("Say what you like") and "/help" in out and "How about " in out and out.endswith("\n\n")
        assert "Traceback" not in err
    leaves, lines = EOFError, iter([])
    assert list(typed()) == []


def test_ctrl_c_in_a_reply_ends_it(monkeypatch, piped, folder):
    def interrupted(*_):
        yield "How "
        raise KeyboardInterrupt

    monkeypatch.setattr("ilm_lib.model.reply._written", interrupted)
    assert piped("a western\nanother\n", "--model", folder)[:2] == (0, "How \n\n")


def test_the_command_refuses_in_a_line(piped, folder, new_ilm, tmp_path, monkeypatch):
    def error(*arguments):
        code, out, err = piped("a western\n", *arguments)
        assert out == ""
        return code, err.strip().splitlines()[-1]

    code, says = error("--model", tmp_path / "none")
    assert code == 1 and says.startswith("error: ") and "none" in says
    code, says = error("--model", new_ilm("mlp").save_pretrained(tmp_path / "other"))
    assert code == 1 and "not trained on dialogues" in says
    assert error("--model", folder, "--k", "0")[0] == error("--model", folder, "--device", "tpu")[0] == error()[0] == 2
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, says = error("--model", folder, "--device", "cuda")
    assert code == 2 and "no GPU" in says


@pytest.mark.slow
def test_bytes_that_are_no_text_and_a_reader_that_leaves(folder):
    """In a process of its own, where nothing can be shown but ASCII."""
    root = str(Path(__file__).resolve().parents[1])
    env = os.environ | {"PYTHONPATH": root, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "ilm_lib", "chat", "--model", str(folder)]
    lines = b"\xff\xfe like Film 3\n/seen \xe8\x96\xac\n" + b"a western\n" * 50
    done = subprocess.run(["sh", "-c", '"$@" | head -c 200', "sh", *command], env=env, input=lines, capture_output=True)
    assert done.stdout.startswith(b"How about Film ") and len(done.stdout) == 200
    assert b"Traceback" not in done.stderr and b"BrokenPipe" not in done.stderr
    done = subprocess.run(command, env=env, input=lines[:40], capture_output=True)
    assert done.returncode == 0 and b"error: no item has the title or id" in done.stdout
