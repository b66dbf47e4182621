"""Teachers that misbehave: what a server may send, what a key may look like, what a file of answers may hold."""

import base64
import gzip
import json
import os
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import pytest
from plain import refused

from ilm_lib.data.instructions import Request
from ilm_lib.data.teacher_openai import OpenAITeacher, retry_after
from ilm_lib.data.teachers import LanguageModelTeacher, clean, read_answers
from ilm_lib.errors import Refusal
from ilm_lib.study import teach

KEY = "sk-pr/oj+Ab3dEf6hIj9kLm2No5pQr8tUv="
ASKED = [Request("pitch", "Pitch the movie Heat (1995).")]
WORDS = "One last robbery goes wrong."


def chat(content, **more):
    """A whole answer in JSON."""
    return json.dumps({"choices": [{"message": {"content": content}, **more}]}).encode()


def send(body, status=200, **headers):
    """A reply: what a handler writes to its client."""

    def reply(handler):
        handler.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            handler.send_header(name.replace("_", "-"), str(value))
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def raw(*parts, pause=0.0, often=1):
    """Bytes as they are, `often` times, with pauses between, until the client has had enough; then it is over."""

    def reply(handler):
        handler.close_connection = True
        for part in [*parts[:-1], *[parts[-1]] * often]:
            handler.wfile.write(part)
            handler.server.sent += len(part)
            time.sleep(pause)

    return reply


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.signed.append(self.headers.get("Authorization"))
        try:
            self.server.reply(self)
        except OSError:
            self.server.gone = self.close_connection = True

    do_GET = do_POST


class Server(ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False

    def handle_error(self, *args):
        pass


def started():
    server = Server(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def servers():
    pair = started(), started()
    yield pair
    for server in pair:
        server.shutdown()
        server.server_close()


@pytest.fixture
def server(servers, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TEACHER_KEY", KEY)
    for one in servers:
        one.reply, one.signed, one.sent, one.gone = send(chat(WORDS)), [], 0, False
    return servers[0]


@pytest.fixture
def teacher(server, tmp_path):
    return openai(server.url, tmp_path)


def openai(url, tmp_path, **more):
    settings = {"key_env": "TEACHER_KEY", "backoff": 0.001, "tries": 2, "timeout": 5, **more}
    return OpenAITeacher(url, "tiny", tmp_path / "answers.jsonl", **settings)


# ------------------------------------------------------------ the key


FORMS = {
    "as it is": KEY,
    "in a sentence": f"who is {KEY}?",
    "in two lines": f"{KEY[:17]}\n{KEY[17:]}",
    "in two places": f"it starts {KEY[:18]}, and it ends {KEY[16:]}",
    "in capitals": KEY.upper(),
    "letter by letter": " ".join(KEY),
    "URL-encoded": quote(KEY, safe=""),
    "twice URL-encoded": quote(quote(KEY, safe=""), safe=""),
    "JSON-escaped": KEY.replace("/", "\\/"),
    "in \\u escapes": "".join(f"\\u{ord(c):04x}" for c in KEY),
    "in HTML": "".join(f"&#{ord(c)};" for c in KEY),
    "in base64": base64.b64encode(KEY.encode()).decode(),
    "in base64 with more": base64.b64encode(f"Bearer {KEY}, is it?".encode()).decode(),
    "in base64 with yet more": base64.b64encode(f"x Bearer {KEY}".encode()).decode(),
    "in base64 for URLs": base64.urlsafe_b64encode(f"key={KEY}".encode()).decode(),
    "in hexadecimal": KEY.encode().hex(),
}


def nowhere(error, tmp_path):
    """No part of the key in what an error shows in any way, and in no file."""
    chain, seen = [error], []
    for link in chain:
        seen += [str(link), repr(link), *map(repr, link.args), *traceback.format_exception(link)]
        chain += [e for e in (link.__cause__, link.__context__) if e is not None and e not in chain]
    seen += [p.read_text() for p in tmp_path.rglob("*") if p.is_file()]
    parts = [KEY[:12], KEY[20:], *(f[:24] for f in list(FORMS.values())[6:])]
    assert not [part for part in parts for text in seen if part.lower() in text.lower()]


def failing(call, *names):
    with pytest.raises(Refusal) as caught:
        call()
    refused(lambda: (_ for _ in ()).throw(caught.value), *names)
    return caught.value


@pytest.mark.parametrize("shown", FORMS.values(), ids=FORMS)
def test_a_key_in_an_answer_is_not_kept(server, teacher, tmp_path, shown):
    server.reply = send(chat(f"A robbery of {shown} goes wrong."))
    nowhere(failing(lambda: teacher.write(ASKED), "API key in it", "whose server this is"), tmp_path)
    assert server.signed == [f"Bearer {KEY}"] and not teacher.known()


@pytest.mark.parametrize("shown", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("status", [400, 401, 503])
def test_a_key_in_an_error_is_not_shown(server, teacher, tmp_path, status, shown):
    server.reply = send(json.dumps({"error": {"message": f"Incorrect API key: {shown}"}}).encode(), status)
    nowhere(failing(lambda: teacher.write(ASKED), f"HTTP {status}", "key"), tmp_path)


ECHOES = {
    "no JSON": send(f"key {KEY}".encode(), 400),
    "in the middle of much": send(json.dumps({"error": "no " * 20 + KEY + " no" * 3000}).encode(), 400),
    "as a key of JSON": send(json.dumps({KEY: KEY}).encode(), 400),
    "as the choices": send(json.dumps({"choices": KEY}).encode()),
    "as no choices": send(json.dumps({"your key": KEY}).encode()),
    "as content that is no text": send(chat({"key": KEY})),
    "in parts of content": send(chat([{"text": KEY[:18]}, {"text": KEY[18:]}])),
    "where it sends on to": send(b"", 307, Location=f"https://evil.example/{quote(KEY, safe='')}"),
    "as a way to pack": send(b"x", Content_Encoding=KEY),
    "as when to ask again": send(b"", 429, Retry_After=KEY),
    "as a status line": raw(f"HTTP/1.1 {KEY}\r\n\r\n".encode()),
    "as a header": raw(f"HTTP/1.1 200 OK\r\n{KEY}\r\n{KEY}: {KEY}\r\nContent-Length: 0\r\n\r\n".encode()),
    "as a chunk": raw(f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{KEY}\r\n".encode()),
}


@pytest.mark.parametrize("reply", ECHOES.values(), ids=ECHOES)
def test_a_key_anywhere_in_a_reply_goes_nowhere(server, teacher, tmp_path, reply):
    server.reply = reply
    nowhere(failing(lambda: teacher.write(ASKED), server.url), tmp_path)
    assert not teacher.known()


BAD_KEYS = {
    "a line break": "sk-secret\n123456789",
    "a header": "sk-secret-123456\r\nX-Evil: 1",
    "a blank": "sk-secret 123456789",
    "a tab": "sk-secret\t123456789",
    "the word Bearer": "Bearer sk-secret-12345",
    "an umlaut": "sk-secret-ü123456789",
    "Cyrillic": "sk-secret-Ж123456789",
    "no UTF-8": "sk-secret-\udcff123456789",
    "a control character": "sk-secret-\x01123456789",
    "10 kB": "sk-secret-" + "1" * 10_000,
}


@pytest.mark.parametrize("key", BAD_KEYS.values(), ids=BAD_KEYS)
def test_a_key_that_cannot_be_sent_is_refused_unseen(server, tmp_path, monkeypatch, key):
    monkeypatch.setenv("TEACHER_KEY", key)
    error = failing(lambda: openai(server.url, tmp_path), "TEACHER_KEY", "cannot be sent", "the key alone")
    assert "secret" not in "".join(traceback.format_exception(error)) + repr(error) and not server.signed


@pytest.mark.parametrize("name", ["sk-secret-1", "hf_SecretAb12", "gsk_secret12", "my secret", "1secret", "secret\n"])
def test_a_key_in_place_of_its_variables_name_is_refused_unseen(tmp_path, name):
    error = failing(lambda: openai("http://127.0.0.1/v1", tmp_path, key_env=name), "teacher_key_env", "OPENAI_API_KEY")
    assert "ecret" not in str(error)


@pytest.mark.parametrize("key", ["", " ", "\n", "EMPTY", "local", f" {KEY}\n"])
def test_no_key_a_word_or_one_with_a_line_break_after_it_will_do(server, tmp_path, monkeypatch, key):
    monkeypatch.setenv("TEACHER_KEY", key)
    server.reply = send(chat("An empty local bank is robbed."))
    assert openai(server.url, tmp_path).write(ASKED) == ["An empty local bank is robbed."]
    assert server.signed == [f"Bearer {key.strip()}" if key.strip() else None]


def test_no_password_file_is_looked_into(server, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password sesame\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("TEACHER_KEY")
    openai(server.url, tmp_path).write(ASKED)
    assert server.signed == [None]


URLS = ["ftp://h/v1", "file:///etc/passwd", "localhost:8000/v1", "", "http://", "http://a b/v1", "http://me:pw@h/v1"]
URLS += ["http://[::1", "http://127.0.0.1:99999/v1", "http://127.0.0.1:x/v1", "http://.../v1", "https://", "//h/v1"]
URLS += ["http://h/v1?api_key=pw", "http://h/v1#pw", "http://h/v1\nHost: pw", f"http://h/{quote(KEY, safe='')}/v1"]


@pytest.mark.parametrize("url", URLS)
def test_an_url_that_cannot_be_asked_is_refused_before_it_is(server, tmp_path, url):
    error = failing(lambda: openai(url, tmp_path), "elm24.teacher_url", "http://HOST/PATH")
    assert "pw" not in str(error)
    nowhere(error, tmp_path)


def test_a_proxy_that_does_not_answer_is_named_without_its_password(server, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://me:sesame@127.0.0.1:9")
    error = failing(lambda: openai(server.url, tmp_path).write(ASKED), "no answer (ProxyError)", "the server runs")
    assert "sesame" not in str(error) and not server.signed
    nowhere(error, tmp_path)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("where", ["other", "file:///etc/passwd", "ftp://127.0.0.1/x", "/v1/again", "//127.0.0.1:9/"])
def test_nobody_is_sent_on(server, servers, teacher, tmp_path, status, where):
    where = servers[1].url if where == "other" else where
    server.reply = send(b"", status, Location=where)
    nowhere(failing(lambda: teacher.write(ASKED), f"HTTP {status}", f"sends on to {where}", "Check the URL"), tmp_path)
    assert len(server.signed) == 1 and not servers[1].signed


# ------------------------------------------------------------ too slow, too large, broken


START = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = START + b"Transfer-Encoding: chunked\r\n\r\n"
SLOW = {
    "silence": raw(b"", b"", pause=0.2, often=20),
    "a body that drips": raw(START + b"Content-Length: 999\r\n\r\n", b" ", pause=0.02, often=200),
    "chunks that drip": raw(CHUNKED, b"1\r\n \r\n", pause=0.02, often=200),
    "headers that drip": raw(START, b"X-More: 1\r\n", pause=0.02, often=90),
    "one header that drips": raw(START + b"X: ", b"x", pause=0.02, often=200),
    "a status line that drips": raw(b"HTTP/1.1 200 ", b"O", pause=0.02, often=200),
    "going on and on": raw(*[b"HTTP/1.1 100 Continue\r\n\r\n"] * 2, pause=0.02, often=200),
}


@pytest.mark.parametrize("reply", SLOW.values(), ids=SLOW)
def test_a_server_that_never_ends_is_left(server, tmp_path, reply):
    server.reply, started = reply, time.monotonic()
    teacher = openai(server.url, tmp_path, timeout=0.2)
    nowhere(failing(lambda: teacher.write(ASKED), "no answer", "2 times", "the server runs"), tmp_path)
    assert time.monotonic() - started < 2


MEGABYTE = b"x" * (1 << 20)
LARGE = {
    "300 MB": raw(START + b"Content-Length: 314572800\r\n\r\n", MEGABYTE, often=300),
    "300 MB of unknown length": raw(START + b"Connection: close\r\n\r\n", MEGABYTE, often=300),
    "300 MB in chunks": raw(CHUNKED, b"100000\r\n" + MEGABYTE + b"\r\n", often=300),
    "300 MB in one chunk": raw(CHUNKED + b"12c00000\r\n", MEGABYTE, often=300),
    "300 MB of an error": raw(b"HTTP/1.1 400 No\r\nContent-Length: 314572800\r\n\r\n", MEGABYTE, often=300),
}


@pytest.mark.parametrize("reply", LARGE.values(), ids=LARGE)
def test_a_server_that_sends_too_much_is_left(server, teacher, tmp_path, reply):
    server.reply = reply
    nowhere(failing(lambda: teacher.write(ASKED), "more than 1 MB", "max_tokens"), tmp_path)
    assert server.sent < 20 << 20  # buffers on the way


BOMB = gzip.compress(chat("x" * (20 << 20)))
BROKEN = {
    "a gzip bomb": (send(BOMB, Content_Encoding="gzip"), "packed as gzip"),
    "packed, if small": (send(gzip.compress(chat(WORDS)), Content_Encoding="GZIP"), "packed as GZIP"),
    "packed in some way": (send(b"x", Content_Encoding="br, zstd"), "packed as br, zstd"),
    "a header without end": (raw(START + b"X: ", b"x" * 70_000), "no answer"),
    "10,000 headers": (raw(START, b"X: 1\r\n", often=10_000), "no answer"),
    "half an answer": (raw(START + b"Content-Length: 99\r\n\r\n", chat(WORDS)[:20]), "no answer"),
    "half a chunk": (raw(CHUNKED, b"ff\r\n{"), "no answer"),
    "a chunk of no size": (raw(CHUNKED, b"-5\r\n{"), "no answer"),
    "nothing": (raw(b""), "no answer"),
    "no HTTP": (raw(b"SSH-2.0-OpenSSH_9.9\r\n"), "no answer"),
    "status 0": (raw(b"HTTP/1.1 000 No\r\nContent-Length: 0\r\n\r\n"), "no answer"),
    "no content": (raw(b"HTTP/1.1 204 No Content\r\n\r\n"), "without choices"),
    "an empty body": (send(b""), "without choices"),
    "a web page": (send(b"<!doctype html><title>Welcome</title>" * 99), "without choices"),
    "no UTF-8": (send(b'{"choices": "\xff\xfe"}'), "without choices"),
    "depth": (send(b"[" * 200_000), "without choices"),
    "an endless number": (send(b'{"choices": ' + b"1" * 99_999 + b"}"), "without choices"),
    "null": (send(b"null"), "without choices"),
    "a string": (send(b'"hello"'), "without choices"),
    "choices: []": (send(b'{"choices": []}'), "without choices"),
    "choices: null": (send(b'{"choices": null}'), "without choices"),
    "choices: a text": (send(b'{"choices": "no"}'), "without choices"),
    "no message": (send(b'{"choices": [{"text": "One last robbery."}]}'), "without choices"),
    "a message of null": (send(b'{"choices": [{"message": null}]}'), "without choices"),
    "content: a number": (send(chat(42)), "is no text"),
    "content: true": (send(chat(True)), "is no text"),
    "content: an object": (send(chat({"text": WORDS})), "is no text"),
    "content: a list of words": (send(chat(WORDS.split())), "without choices"),
    "content: parts of numbers": (send(chat([{"text": 1}])), "without choices"),
    "a long error": (send(json.dumps({"error": {"message": "no " * 9999}}).encode(), 400), "HTTP 400: no no"),
    "an error of depth": (send(b"[" * 200_000, 400), "HTTP 400: [[["),
    "an error of null": (send(b"null", 400), "HTTP 400: None"),
    "an error of several lines": (send(b"a\n\n\nb\r\nc\n\n\nd", 422), "HTTP 422: a b c d"),
    "an error without a word": (send(b"", 418), "HTTP 418: no message"),
    "a page that is not there": (send(b"<html>" * 999, 404), "HTTP 404"),
    "who are you": (send(b"{}", 401), "the environment variable TEACHER_KEY: it is sent"),
    "errors for ever": (send(b'{"message": "' + b"full " * 99 + b'"}', 503), "2 times"),
    "again in a year": (send(b"", 429, Retry_After="31536000"), "asked again in 3.1536e+07 s"),
    "again never": (send(b"", 429, Retry_After="inf"), "asked again in inf s"),
    "again in 10^300 s": (send(b"", 503, Retry_After="9" * 300), "asked again in 1e+300 s"),
    "again in the year 9999": (send(b"", 503, Retry_After="Fri, 31 Dec 9999 23:59:59 GMT"), "asked again in 2.5"),
}


@pytest.mark.parametrize("reply, name", BROKEN.values(), ids=BROKEN)
def test_a_broken_reply_is_told_in_one_message(server, teacher, tmp_path, reply, name):
    server.reply = reply
    nowhere(failing(lambda: teacher.write(ASKED), server.url, "tiny", name, "Check", "run again"), tmp_path)


SECONDS = {None: 0, "": 0, "0": 0, "7": 7, "1.5": 1.5, "-5": 0, "-inf": 0, "nan": 0, "soon": 0, "7 s": 0, "0x9": 0}
SECONDS |= {"Mon, 99 Foo 2026 00:00:00 GMT": 0, "Thu, 01 Jan 1970 00:00:00 GMT": 0, "Mon, 01 Jan 0001 00:00:00": 0}
SECONDS |= {"1e400": float("inf"), "9" * 5000: float("inf")}


@pytest.mark.parametrize("value", SECONDS, ids=lambda v: str(v)[:20])
def test_when_to_ask_again(value):
    assert retry_after(value) == SECONDS[value]


FINE = {
    "a list of parts": (
        chat([{"type": "text", "text": "One last "}, {"type": "x"}, {"text": "robbery."}]),
        "One last robbery.",
    ),
    "null": (chat(None), None),
    "nothing": (chat(""), None),
    "no content": (b'{"choices": [{"message": {"refusal": "No."}}]}', None),
    "an empty list": (chat([]), None),
    "half a character": (chat("A \ud83d robbery goes wrong."), "A ? robbery goes wrong."),
    "a character in halves": (chat("A \U0001f4b0 robbery goes wrong."), "A \U0001f4b0 robbery goes wrong."),
    "NUL": (chat("A rob\0bery goes\x07 wrong."), "A robbery goes wrong."),
    "strange lines": (chat("One\u2028last\x85robbery\rgoes wrong."), "One last robbery goes wrong."),
    "cut off by the limit": (chat("One last robbery. It goes wro", finish_reason="length"), "One last robbery."),
    "left out by a filter": (chat("", finish_reason="content_filter"), None),
    "a byte order mark": (b"\xef\xbb\xbf" + chat(WORDS), WORDS),
    "an answer about keys": (
        chat("His sk-key is AAAA-BBBB, and his API key is lost."),
        "His sk-key is AAAA-BBBB, and his API key is lost.",
    ),
    "long": (chat("word " * 50_000 + "end."), "word " * 50_000 + "end."),
}


@pytest.mark.parametrize("body, text", FINE.values(), ids=FINE)
def test_what_can_be_used_is_used_and_kept_as_it_is(server, teacher, body, text):
    server.reply = send(body)
    assert teacher.write(ASKED) == [text]
    server.reply = raw(b"")
    assert teacher.write(ASKED) == [text]  # from the file
    assert teacher.answers.read_bytes().isascii() or "\ufffd" not in teacher.answers.read_text()


# ------------------------------------------------------------ the file of answers


class Echo(LanguageModelTeacher):
    """Says what it is asked, and counts."""

    asked = 0

    def ask(self, instructions):
        for i, text in enumerate(instructions):
            self.asked += 1
            yield i, f"It says {text}"


THREE = [Request("pitch", f"Pitch film number {n}.") for n in range(3)]


@pytest.fixture
def echo(tmp_path):
    teacher = Echo("hf", "m", tmp_path / "answers.jsonl")
    teacher.whole = teacher.write(THREE)
    teacher.asked, teacher.lines = 0, teacher.answers.read_bytes().splitlines(keepends=True)
    return teacher


def line(key="k", text="One last robbery."):
    return json.dumps({"key": key, "text": text}).encode() + b"\n"


MENDED = {  # what stands in the file after three lines; how many of the three are asked again
    "as it was": (lambda three: three, 0),
    "half a line at the end": (lambda three: [*three[:2], three[2][:40]], 1),
    "half a line, in the middle of a character": (lambda three: [*three[:2], '{"key": "ü'.encode()[:-1]], 1),
    "half a line after three": (lambda three: [*three, b'{"key": "'], 0),
    "zeros after a power cut": (lambda three: [*three[:2], bytes(4096)], 1),
    "no line break at the end": (lambda three: [*three[:2], three[2][:-1]], 0),
    "blank lines": (lambda three: [three[0], b"\n", three[1], b"  \n\n", three[2], b"\n"], 0),
    "lines as Windows ends them": (lambda three: [x.replace(b"\n", b"\r\n") for x in three], 0),
    "a byte order mark": (lambda three: [b"\xef\xbb\xbf" + three[0], *three[1:]], 0),
    "one line twice": (lambda three: [*three, three[0]], 0),
    "other models' answers": (lambda three: [line("a"), *three, line("b")], 0),
    "nothing": (lambda three: [], 3),
    "only blanks": (lambda three: [b" "], 3),
    "half a character": (lambda three: [*three, line("c", "\ud83d")], 0),
}


@pytest.mark.parametrize("harm, again", MENDED.values(), ids=MENDED)
def test_a_file_of_answers_is_mended_and_nothing_paid_for_is_lost(echo, harm, again):
    echo.answers.write_bytes(b"".join(harm(echo.lines)))
    before = echo.known()
    more = [*THREE, Request("pitch", "One more of them.")]
    assert echo.write(more)[:3] == echo.whole and echo.asked == again + 1
    assert before.items() <= echo.known().items() and len(echo.known()) == len(before) + again + 1
    assert echo.write(more)[:3] == echo.whole and echo.asked == again + 1


REFUSED = {
    "half a line in the middle": (lambda three: [three[0][:40], b"\n", *three[1:]], ":1: is no answer"),
    "two lines in one": (lambda three: [three[0], three[1].strip() + three[2], three[0]], ":2: is no answer"),
    "no JSON": (lambda three: [three[0], b"hello\n", three[2]], ":2: is no answer"),
    "a list": (lambda three: [b"[1, 2]\n", *three], ":1: is no answer"),
    "null": (lambda three: [b"null\n", *three], ":1: is no answer"),
    "no text": (lambda three: [b'{"key": "a"}\n', *three], ":1: is no answer"),
    "a text of null": (lambda three: [b'{"key": "a", "text": null}\n', *three], ":1: is no answer"),
    "a number for a text": (lambda three: [b'{"key": "a", "text": 4}\n', *three], ":1: is no answer"),
    "a number for a key": (lambda three: [b'{"key": 4, "text": "x"}\n', *three], ":1: is no answer"),
    "depth": (lambda three: [b"[" * 99_999 + b"\n", *three], ":1: is no answer"),
    "no UTF-8": (lambda three: [b'{"key": "\xff", "text": "x"}\n', *three], ":1: is no answer"),
    "UTF-16": (lambda three: [b"".join(three).decode().encode("utf-16")], ":1: is no answer"),
    "packed": (lambda three: [gzip.compress(bytes(range(256)) * 40)], ":1: is no answer"),
    "two answers to one prompt": (lambda three: [line("a"), line("a", "Another."), *three], ":2: answers what"),
}


@pytest.mark.parametrize("harm, name", REFUSED.values(), ids=REFUSED)
def test_a_file_of_answers_that_no_kill_leaves_is_refused(echo, harm, name):
    content = b"".join(harm(echo.lines))
    echo.answers.write_bytes(content)
    refused(lambda: echo.write(THREE), f"answers.jsonl{name}", "Delete")
    assert echo.answers.read_bytes() == content and not echo.asked


PLACES = {
    "a folder": lambda path: path.mkdir(),
    "a folder under a file": lambda path: path.parent.rmdir() or path.parent.write_text(""),
    "a folder for its lock": lambda path: (path.parent / "answers.jsonl.lock").mkdir(),
    "a device": lambda path: os.mkfifo(path),
}


@pytest.mark.parametrize("make", PLACES.values(), ids=PLACES)
def test_a_place_where_no_answers_can_be_kept_is_refused_before_asking(tmp_path, make):
    (tmp_path / "teacher").mkdir()
    make(tmp_path / "teacher" / "answers.jsonl")
    teacher = Echo("hf", "m", tmp_path / "teacher" / "answers.jsonl")
    refused(lambda: teacher.write(THREE), "answers.jsonl", "kept there")
    assert not teacher.asked


def test_a_disk_that_fills_up_is_one_message_and_what_was_kept_is_kept(echo):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    more = [*THREE, *(Request("pitch", f"Pitch another film, {n}.") for n in range(9))]
    resource.setrlimit(resource.RLIMIT_FSIZE, (echo.answers.stat().st_size + 300, before[1]))
    try:
        refused(lambda: echo.write(more), "answers.jsonl", "Make room", "run again")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(read_answers(echo.answers)[0]) == 5
    echo.asked = 0
    assert len(echo.write(more)) == 12 and echo.asked == 7


def test_that_no_answer_is_of_this_model_is_said(echo, capsys):
    other = Echo("hf", "n", echo.answers)
    other.write(THREE)
    said = capsys.readouterr().err
    assert "its 3 answers are to other prompts or of other models than hf:n" in said and other.asked == 3
    other.write(THREE)
    assert "other models" not in capsys.readouterr().err and len(other.known()) == 6


@pytest.mark.parametrize(
    "answer", ["<think>" * 9999, "- " * 9999, "1. a\n" * 9999, '"' * 9999, "." * 9999, "\0" * 9999]
)
def test_cleaning_takes_no_time(answer):
    started = time.monotonic()
    clean(answer)
    assert time.monotonic() - started < 1


# ------------------------------------------------------------ the command


SETTINGS = {
    "no value": ("elm24.teacher", "KEY=VALUE"),
    "no key": ("=hf", "KEY=VALUE"),
    "no YAML": ("elm24.teacher=[", "KEY=VALUE"),
    "a tag of YAML": ("elm24.teacher=!!python/object:os.system x", "KEY=VALUE"),
    "an unknown key": ("elm24.teecher=hf", "teecher"),
    "an unknown teacher": ("elm24.teacher=gpt", "elm24.teacher"),
    "a key in the URL": ("elm24.teacher_url=http://me:pw@h/v1", "elm24.teacher"),
}


@pytest.mark.parametrize("given, name", SETTINGS.values(), ids=SETTINGS)
def test_the_command_tells_what_is_wrong_in_one_line(given, name, capsys):
    assert teach.main(["--set", given, "--dry-run"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and name in said and "Traceback" not in said
