"""Language models as teachers: a tiny LLM from disk and a local server that speaks the OpenAI protocol."""

import hashlib
import json
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest

from ilm_lib.data import DataError, teachers, toy
from ilm_lib.data.elm24 import TASKS, build_elm24
from ilm_lib.data.elm24_file import load_elm
from ilm_lib.data.instructions import Request, instruct
from ilm_lib.data.teacher_hf import HFTeacher
from ilm_lib.data.teacher_openai import OpenAITeacher, retry_after
from ilm_lib.data.teachers import DryRun, TeacherError, clean, dry_run, read_answers
from ilm_lib.model.tokenizer import train_tokenizer
from ilm_lib.profiles import load_params
from ilm_lib.settings import ParamsError
from ilm_lib.study import elm_inputs, teach

FILMS, KEY = 12, "sk-secret-123"
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)


@pytest.fixture(scope="module")
def texts():
    rng_films, rng_texts = np.random.default_rng(0).spawn(2)
    return toy.draw_texts(rng_texts, toy.draw_films(rng_films, FILMS))


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(5).standard_normal((FILMS, 8))


@pytest.fixture(scope="module")
def requests_(texts):
    prompts = {task.name: task.prompts[0] for task in TASKS}
    return [Request(name, instruct(name, prompts[name], film)) for name in ("summary", "pitch") for film in texts[:5]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, new_llm, texts):
    """The same tiny LLM with and without a chat template."""
    tokenizer = train_tokenizer([t["overview"] for t in texts] + [p for task in TASKS for p in task.prompts], 900)
    made = {}
    for kind, template in (("plain", None), ("chat", CHAT)):
        made[kind] = tmp_path_factory.mktemp("models") / f"tiny-{kind}"
        llm = new_llm("llama", len(tokenizer), bos=tokenizer.bos_token_id, eos=tokenizer.eos_token_id)
        llm.save_pretrained(made[kind])
        tokenizer.chat_template = template
        tokenizer.save_pretrained(made[kind])
    return made


class Server(ThreadingHTTPServer):
    """Answers by a hash of the instruction; `script` holds (status, headers, body) to be sent first."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.script, self.asked, self.keys = threading.Lock(), [], [], []
        self.now = self.most = 0
        self.pause = 0.0
        self.refuse_after = None
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def do_POST(self):
        server = self.server
        with server.lock:
            server.now += 1
            server.most = max(server.most, server.now)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(server.pause)
        with server.lock:
            text = body["messages"][-1]["content"]
            server.asked.append(body)
            server.keys.append(self.headers.get("Authorization"))
            status, headers, answer = 200, {}, {"choices": [{"message": {"content": says(text)}}]}
            if server.script:
                status, headers, answer = server.script.pop(0)
            elif server.refuse_after is not None and len(server.asked) > server.refuse_after:
                status, answer = 400, {"error": {"message": "enough for today"}}
            if self.path != "/v1/chat/completions":
                status, answer = 404, {"detail": "Not Found"}
            server.now -= 1
        raw = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(raw))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)


def says(text):
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'"A tale {digest[:6]} of\n\nwords {digest[6:12]} and others."'


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TEACHER_KEY", KEY)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def openai(server, tmp_path, **changes):
    return OpenAITeacher(
        server.url,
        "tiny",
        tmp_path / "openai.jsonl",
        **{"key_env": "TEACHER_KEY", "backoff": 0.01, "tries": 4, **changes},
    )


def instructions(teacher, monkeypatch):
    """Takes down what a teacher is asked."""
    asked, ask = [], teacher.ask
    monkeypatch.setattr(teacher, "ask", lambda texts: asked.extend(texts) or ask(texts))
    return asked


# ------------------------------------------------------------ instructions and answers


def test_instructions_have_titles_facts_and_the_rule():
    film = {
        "title": "Matrix, The (1999)",
        "genres": ["Sci-Fi", "(no genres listed)"],
        "overview": "A hacker wakes.",
        "tags": ["cyber"],
    }
    other = {"title": "Heat (1995)"}
    for task in TASKS:
        text = instruct(task.name, task.prompts[1], film, None if task.inputs == "film" else other)
        assert "The Matrix (1999): year 1999; genres Sci-Fi; tags cyber; plot A hacker wakes." in text
        assert "Do not name the film" in text and "{" not in text
        assert ("Heat (1995): year 1995" in text) == (task.inputs != "film")
        assert ("exactly five points" in text) == task.name.startswith("five")
    assert "nothing is on record" in instruct("pitch", "Pitch the movie {film}.", {"title": None})
    long = instruct("pitch", "Pitch the movie {film}.", {"overview": "plotty " * 900})
    assert long.count("plotty") == 200 and "plotty ..." in long


@pytest.mark.parametrize(
    "answer, text",
    [
        ('  "A thief\nplans  it all."  ', "A thief plans it all."),
        ("“One last robbery.”", "One last robbery."),
        ('"Yes" and "no" are said', '"Yes" and "no" are said'),
        ("Answer: one last robbery.", "one last robbery."),
        ("<think>Well, let me see.</think>\nOne last robbery.", "One last robbery."),
        ("Here are five:\n1. **Good** faces.\n2. Warm light,\n3) wit", "Good faces, Warm light, wit."),
        ("A thief plans. He robs the ba", "A thief plans."),
        ("He robs the bank of", "He robs the bank of"),
        ("", None),
        ("  \n", None),
        ("Two words.", None),
        ("... - ! ?", None),
        ("<think>One thing is sure", None),
    ],
)
def test_cleaning(answer, text):
    assert clean(answer) == text


def test_refused_answers_are_asked_for_once_more_and_then_left_out(texts, vectors, tmp_path):
    class Shy(teachers.LanguageModelTeacher):
        asked = 0

        def ask(self, instructions):
            for i, text in enumerate(instructions):
                self.asked += 1
                title = text.split("\n- ")[1].split(":")[0]
                shy = "Pitch the movie" in text and (teachers.AGAIN not in text or title == shyest)
                yield i, "no" if shy else f"It says {title} and {hash(text)} here."

    shyest = texts[3]["title"]
    shy = Shy("hf", "shy", tmp_path / "shy.jsonl")
    table = build_elm24(texts, vectors, test_fraction=0.25, teacher=shy)
    pitches = [
        r for r in build_elm24(texts, vectors, test_fraction=0.25).itertuples() if r.prompt == "Pitch the movie {film}."
    ]
    lost = sum(r.item == 3 for r in pitches)
    assert table.attrs["left_out"] == lost and len(table) == 24 * FILMS - lost
    assert shy.asked == 24 * FILMS + len(pitches)
    # A teacher that names the film anyway is corrected.
    assert not any(texts[r.item]["title"][:-7] in r.target for r in table.itertuples())
    again = build_elm24(texts, vectors, test_fraction=0.25, teacher=shy)
    assert again.equals(table) and shy.asked == 24 * FILMS + len(pitches)  # refusals are not asked for a third time


def test_a_teacher_that_says_nothing_is_an_error(texts, vectors, tmp_path):
    class Mute(teachers.LanguageModelTeacher):
        def ask(self, instructions):
            yield from ((i, "") for i in range(len(instructions)))

    with pytest.raises(ValueError, match="hf:mute gave no usable text for 'summary', train.*by hand"):
        build_elm24(texts, vectors, test_fraction=0.25, teacher=Mute("hf", "mute", tmp_path / "mute.jsonl"))


def test_a_torn_last_line_is_ignored_and_any_other_damage_named(tmp_path, requests_):
    class Counting(teachers.LanguageModelTeacher):
        asked = 0

        def ask(self, instructions):
            self.asked += len(instructions)
            yield from enumerate(instructions)

    teacher = Counting("hf", "m", tmp_path / "a.jsonl")
    whole = teacher.write(requests_)
    lines = teacher.answers.read_bytes().splitlines(keepends=True)
    teacher.answers.write_bytes(b"\n" + b"".join(lines)[:-1])  # as an editor leaves it
    assert teacher.write([*requests_, Request("pitch", "And now what?")])[:-1] == whole
    assert teacher.answers.read_bytes().startswith(b"\n" + b"".join(lines)) and teacher.asked == len(requests_) + 1
    for torn in (lines[-1][:30], lines[-1][:-2], b"\xff\n"):
        teacher.answers.write_bytes(b"".join(lines[:-1]) + torn)
        teacher.asked = 0
        assert teacher.write(requests_) == whole and teacher.asked == 1
        assert teacher.answers.read_bytes() == b"".join(lines)
    teacher.answers.write_bytes(lines[0] + b"{}\n" + b"".join(lines[1:]))
    with pytest.raises(DataError, match=r"a\.jsonl:2: is no answer.*Delete the line"):
        teacher.write(requests_)
    assert teacher.key("x") != Counting("hf", "n", teacher.answers).key("x")


# ------------------------------------------------------------ hf


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_hf_batches_change_nothing_and_the_chat_template_is_applied(folders, kind, requests_, tmp_path):
    one, many = (
        HFTeacher(str(folders[kind]), tmp_path / f"{size}.jsonl", max_tokens=12, batch_size=size) for size in (1, 4)
    )
    assert one.name == f"hf:tiny-{kind}"
    one.write(requests_), many.write(requests_)
    assert one.known() == many.known() and len(one.known()) >= len(requests_)
    assert len(set(one.known().values())) > 1
    start = {"plain": "user: Go.\nassistant:", "chat": "<user>Go.\n<bot>"}[kind]
    assert one.prompt("Go.")[-len(ids := one.load()[1](start, add_special_tokens=False)["input_ids"]) :] == ids


def test_hf_no_text_of_a_film_is_a_special_token(folders, tmp_path):
    teacher = HFTeacher(str(folders["chat"]), tmp_path / "a.jsonl")
    tokenizer = teacher.load()[1]
    special = set(tokenizer.all_special_ids)
    for marker in tokenizer.all_special_tokens:
        marks = [i for i in teacher.prompt(f"Pitch {marker}{marker}.") if i in special]
        assert special & set(tokenizer(marker)["input_ids"])
        assert marks == [i for i in teacher.prompt("Pitch it.") if i in special], marker  # the template's own


def test_hf_resumes_after_an_interruption(folders, requests_, tmp_path, monkeypatch):
    path, batches = tmp_path / "answers.jsonl", []

    def new():
        return HFTeacher(str(folders["plain"]), path, max_tokens=8, batch_size=3)

    whole = HFTeacher(str(folders["plain"]), tmp_path / "whole.jsonl", max_tokens=8, batch_size=3)
    expected = whole.write(requests_)
    broken = new()
    generate = broken.load()[0].generate

    def stopping(**kwargs):
        batches.append(len(kwargs["input_ids"]))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return generate(**kwargs)

    monkeypatch.setattr(broken.load()[0], "generate", stopping)
    with pytest.raises(KeyboardInterrupt):
        broken.write(requests_)
    assert len(read_answers(path)[0]) == 6
    resumed = new()
    asked = instructions(resumed, monkeypatch)
    assert resumed.write(requests_) == expected
    first = [text for text in asked if teachers.AGAIN not in text]
    assert len(first) == len(requests_) - 6
    assert resumed.known() == whole.known()
    finished = new()
    finished.load = None  # nothing is missing: the model is not even loaded
    assert finished.write(requests_) == expected


def test_hf_says_what_is_wrong_with_the_model(folders, requests_, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(TeacherError, match="empty' cannot be loaded.*config.json"):
        HFTeacher(str(tmp_path / "empty"), tmp_path / "a.jsonl").write(requests_)
    with pytest.raises(TeacherError, match="tiny-plain reads 512 tokens.*longer context"):
        HFTeacher(str(folders["plain"]), tmp_path / "a.jsonl", max_tokens=500).write(requests_)


# ------------------------------------------------------------ openai


def test_openai_asks_all_at_once_but_no_more_than_allowed(server, requests_, tmp_path):
    server.pause = 0.03
    teacher = openai(server, tmp_path, concurrency=3)
    got = teacher.write(requests_)
    assert teacher.name == "openai:tiny" and got == [clean(says(r.instruction)) for r in requests_]
    assert 1 < server.most <= 3 and set(server.keys) == {f"Bearer {KEY}"}
    assert {(b["model"], b["temperature"], b["max_tokens"]) for b in server.asked} == {("tiny", 0, teachers.MAX_TOKENS)}
    assert KEY not in teacher.answers.read_text()
    assert teacher.write(requests_[::-1]) == got[::-1] and len(server.asked) == len(requests_)


def test_openai_retries_and_honours_retry_after(server, requests_, tmp_path):
    server.script = [
        (429, {"Retry-After": "0.3"}, {"error": {"message": "slow down"}}),
        (500, {}, {}),
        (503, {"Retry-After": "soon"}, {}),
    ]
    started = time.monotonic()
    assert openai(server, tmp_path, concurrency=1).write(requests_[:1]) == [clean(says(requests_[0].instruction))]
    assert time.monotonic() - started > 0.3 and len(server.asked) == 4
    assert retry_after(None) == retry_after("later") == retry_after("-3") == 0
    assert 50 < retry_after(formatdate(time.time() + 60, usegmt=True)) <= 60


def test_openai_gives_up_in_the_end(server, requests_, tmp_path):
    server.script = [(500, {}, {"message": "out of memory"})] * 4
    with pytest.raises(TeacherError, match="HTTP 500: out of memory, 4 times. Check that the server runs.*run again"):
        openai(server, tmp_path).write(requests_[:1])
    server.script = [(429, {"Retry-After": "86400"}, {})]
    with pytest.raises(TeacherError, match="asked again in 86400 s"):
        openai(server, tmp_path).write(requests_[:1])
    with pytest.raises(TeacherError, match="no answer .ConnectionError., 2 times"):
        OpenAITeacher("http://127.0.0.1:9/v1", "m", tmp_path / "b.jsonl", tries=2, backoff=0.01).write(requests_[:1])


@pytest.mark.parametrize(
    "status, body, message",
    [
        (400, {"error": {"message": f"bad request of {KEY}"}}, r"HTTP 400: bad request of \[key\].*the model's name"),
        (
            401,
            {"error": "who are you"},
            "HTTP 401: who are you.*the key, from the environment variable TEACHER_KEY: it is",
        ),
        (404, {"detail": "no such model"}, r"HTTP 404: no such model.*/v1, and that the model has this name"),
        (200, {"text": "hello"}, "without choices.*OpenAI chat protocol"),
    ],
)
def test_openai_stops_with_the_servers_message(server, requests_, tmp_path, status, body, message):
    server.script = [(status, {}, body)]
    with pytest.raises(TeacherError, match=message) as error:
        openai(server, tmp_path, concurrency=1).write(requests_)
    assert KEY not in str(error.value) and len(server.asked) <= 2  # one may have been on its way


def test_openai_goes_on_where_it_stopped(server, texts, vectors, tmp_path):
    server.refuse_after = 100
    with pytest.raises(TeacherError, match="enough for today"):
        build_elm24(texts, vectors, test_fraction=0.25, teacher=openai(server, tmp_path, concurrency=4))
    kept = len(read_answers(tmp_path / "openai.jsonl")[0])
    assert kept == 100 and len(server.asked) < 110
    server.refuse_after, server.asked = None, []
    table = build_elm24(texts, vectors, test_fraction=0.25, teacher=openai(server, tmp_path))
    assert len(table) == 24 * FILMS and len(server.asked) == 24 * FILMS - kept


def test_openai_without_a_key_and_with_a_key_for_a_name(server, requests_, tmp_path, monkeypatch):
    monkeypatch.delenv("TEACHER_KEY")
    openai(server, tmp_path).write(requests_[:1])
    assert server.keys == [None]
    with pytest.raises(TeacherError, match="name of an environment variable") as error:
        openai(server, tmp_path, key_env=KEY)
    assert KEY not in str(error.value)


# ------------------------------------------------------------ rows by any teacher


@pytest.mark.slow
def test_only_targets_depend_on_the_teacher_and_no_test_film_leaks(server, folders, texts, vectors, tmp_path):
    """The tiny LLM's babble counts as it comes: what is tested is the table around it."""
    made = {
        "template": "template",
        "openai:tiny": openai(server, tmp_path),
        "hf:tiny-chat": HFTeacher(str(folders["chat"]), tmp_path / "hf.jsonl", max_tokens=12, batch_size=32),
    }
    films = texts[:8]
    tables = {name: build_elm24(films, vectors[:8], test_fraction=0.25, teacher=t) for name, t in made.items()}
    columns = ["task", "item", "other", "prompt", "split"]
    for name, table in tables.items():
        assert set(table.teacher) == {name}
        assert len(table) + table.attrs.get("left_out", 0) == 24 * 8
        whole = tables["template"][columns]
        assert len(table[columns].merge(whole)) == len(table)
        seen = {split: set(part.item) | set(part.other) - {-1} for split, part in table.groupby("split")}
        assert len(seen["test"]) == 2 and not seen["test"] & seen["train"]
        different = table.groupby("task")["target"].nunique() / table.groupby("task").size()
        assert (different > 0.7).all(), name
    assert not tables["openai:tiny"].duplicated(["task", "target"]).any()
    with pytest.raises(ValueError, match="teacher 'hf' is unknown"):
        build_elm24(films, vectors[:8], test_fraction=0.25, teacher="hf")


def test_films_without_facts_can_be_left_out(texts, vectors):
    bare = [*texts[:-3], {"title": "Heat (1995)"}, {"title": "Up", "genres": [], "overview": None}, {}]
    table = build_elm24(bare, vectors, test_fraction=0.25, min_facts=1)
    assert set(table.item) | set(table.other) == set(range(FILMS - 3)) | {-1}
    assert len(build_elm24(bare, vectors, test_fraction=0.25)) == 24 * FILMS


# ------------------------------------------------------------ dry run


def test_dry_run_counts_and_asks_nothing(server, texts, vectors, tmp_path, requests_):
    recorder = DryRun("openai")
    build_elm24(texts, vectors, test_fraction=0.25, teacher=recorder)
    teacher = openai(server, tmp_path)
    said = dry_run(recorder.requests, teacher)
    words = sum(len(r.instruction.split()) for r in recorder.requests)
    assert f"teacher openai:tiny: {24 * FILMS} rows of 24 tasks, {24 * FILMS} prompts" in said
    assert f"0 answered already, {24 * FILMS} to ask" in said
    assert f"{round(1.3 * words):,} tokens to read, estimated as words x 1.3" in said
    assert f"at most {160 * 24 * FILMS:,} to write" in said
    assert said.count("Do not name the film") == 2 and "the second film" in said
    assert not server.asked and not teacher.answers.exists()
    teacher.write(recorder.requests[:40])
    assert f"40 answered already, {24 * FILMS - 40} to ask" in dry_run(recorder.requests, teacher)
    assert "1,000 tokens to read, counted by" in dry_run(requests_, "template", lambda text: 100)


@pytest.fixture
def small_study(tmp_path, monkeypatch, server):
    """A profile of the toy world that asks the server; its embeddings are drawn."""
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("ILM_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "small.yaml").write_text(
        json.dumps(
            {
                "profile": "small",
                "data": {"num_items": 80, "num_users": 90},
                "embeddings": {"dim": 4, "iterations": 1},
                "elm24": {"teacher": "openai", "teacher_model": "tiny", "teacher_url": server.url},
            }
        )
    )
    return str(tmp_path / "small.yaml")


@pytest.mark.slow
def test_the_command_and_the_stage(small_study, server, tmp_path, capsys, monkeypatch):
    assert teach.main(["--profile", small_study, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "teacher openai:tiny: 1,920 rows of 24 tasks, 1,920 prompts" in said and not server.asked
    assert teach.main(["--profile", small_study]) == 0
    assert "1,920 rows of 24 tasks by openai:tiny; 0 left out" in capsys.readouterr().out
    assert len(server.asked) == 1920 and (tmp_path / "runs/small/teacher/openai-tiny.jsonl").is_file()
    params = load_params(small_study)
    elsewhere = params.with_(**{"elm24.teacher_url": "http://elsewhere/v1", "elm24.teacher_key_env": None})
    other = params.with_(**{"elm24.teacher_model": "huge"})
    assert elm_inputs.data(elsewhere, 0) == elm_inputs.data(params, 0)
    with pytest.raises(FileNotFoundError):
        elm_inputs.data(other, 0)
    assert teach.main(["--profile", small_study, "--set", "elm24.teacher"]) == 1
    assert teach.main(["--profile", small_study, "--set", "elm24.teacher=hf"]) == 1
    assert "teacher_url is needed with elm24.teacher: openai" in capsys.readouterr().err
    server.refuse_after = 0
    assert teach.main(["--profile", small_study, "--set", "elm24.teacher_model=huge"]) == 1
    assert "model 'huge': HTTP 400: enough for today" in capsys.readouterr().err

    rows = elm_inputs.load_rows(elm_inputs.data(params, 0))
    (tmp_path / "data").mkdir()
    rows.to_parquet(tmp_path / "data" / "mine.parquet")
    own = [f"elm24.{key}=null" for key in ("teacher_model", "teacher_url")] + ["elm24.teacher=template"]
    own = [word for given in (*own, "elm24.file=mine.parquet") for word in ("--set", given)]
    assert teach.main(["--profile", small_study, *own]) == 0
    assert "1,920 rows of 24 tasks by openai:tiny; 0 left out" in capsys.readouterr().out
    assert teach.main(["--profile", small_study, *own[:-1], "elm24.file=gone.parquet"]) == 1
    assert "gone.parquet: is missing" in capsys.readouterr().err


# ------------------------------------------------------------ settings


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"teacher": "hf"}, "teacher_model is needed"),
        ({"teacher": "openai", "teacher_model": "m"}, "teacher_url is needed"),
        (
            {"teacher": "hf", "teacher_model": "m", "teacher_url": "http://h/v1"},
            "teacher_url is needed .* with no other",
        ),
        ({"teacher": "openai", "teacher_model": "m", "teacher_url": "h:8000"}, "starts with http"),
        ({"teacher_model": "m"}, "need elm24.teacher: hf or openai"),
        ({"teacher": "hf", "teacher_model": "m", "file": "f"}, "leave out teacher"),
        ({"teacher": "palm"}, "template.*hf.*openai"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(ParamsError, match=message):
        load_params("toy", elm24=changes)


def test_teachers_by_name(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path))
    hf = load_params("toy", elm24={"teacher": "hf", "teacher_model": str(folders["chat"])})
    asked = elm_inputs.TeacherSettings.of_profile(hf)
    assert asked.teacher().name == "hf:tiny-chat"
    assert asked.answers == asked.teacher().answers == tmp_path / "toy" / "teacher" / "hf-tiny-chat.jsonl"
    assert asked.identity() == {"teacher": "hf", "model": str(folders["chat"])}  # who is asked, and not where


# ------------------------------------------------------------ own files

GOOD = [{"task": "tell", "item": i, "prompt": "Tell of {film}.", "target": f"Film {i}."} for i in range(10)]
PAIRS = [
    {"task": "mix", "item": i, "other": (i + 1) % 10, "prompt": "Mix {film} and {other}.", "target": "So."}
    for i in range(10)
]


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_own_rows_are_split_by_film(tmp_path, form):
    path = tmp_path / f"mine.{form}"
    pd.DataFrame(GOOD + PAIRS).to_parquet(path) if form == "parquet" else write(path, GOOD + PAIRS)
    table = load_elm(path, 10, 0.3, seed=1)
    assert list(table.columns) == ["task", "item", "other", "prompt", "target", "teacher", "split"]
    seen = {split: set(part.item) | set(part.other) - {-1} for split, part in table.groupby("split")}
    assert len(seen["test"]) == 3 and len(seen["train"]) == 7 and not seen["test"] & seen["train"]
    assert 0 < table.attrs["left_out"] == 20 - len(table) and set(table.teacher) == {f"file:mine.{form}"}
    assert load_elm(path, 10, 0.3, seed=1).equals(table) and not load_elm(path, 10, 0.3, seed=2).equals(table)
    built = build_elm24([{"title": f"F{i} (1990)"} for i in range(10)], np.eye(10), test_fraction=0.3)
    built.to_parquet(tmp_path / "built.parquet")
    assert load_elm(tmp_path / "built.parquet", 10).equals(built)


SPLIT = [r | {"split": "test" if r["item"] > 6 else "train"} for r in GOOD]


@pytest.mark.parametrize(
    "line, change, message",
    [
        (3, {"targett": "x"}, "mine.jsonl:3: unknown column targett.*Columns are task, item, prompt, target"),
        (4, {"item": 10}, "mine.jsonl:4: item is 10, the dataset has 10 items.*0 to 9"),
        (4, {"item": "3"}, "mine.jsonl:4: item is '3'"),
        (4, {"item": 1.5}, "mine.jsonl:4: item is 1.5"),
        (4, {"item": float("nan")}, "mine.jsonl:4: is no JSON .*NaN is no number"),
        (5, {"other": -2, "prompt": "{film} {other}"}, "mine.jsonl:5: other is -2.*-1 for none"),
        (2, {"prompt": "Tell."}, "mine.jsonl:2: the prompt has no {film}.*Write {film}"),
        (2, {"prompt": "{film} {other}"}, "mine.jsonl:2: the prompt has {other}, the row no other film"),
        (2, {"other": 3}, "mine.jsonl:2: the row has another film"),
        (2, {"target": " "}, "mine.jsonl:2: target is ' '"),
        (2, {"split": "dev"}, "mine.jsonl:2: split is 'dev'"),
        (2, {"split": None}, "mine.jsonl:2: has no split, other rows have one"),
        (9, {"item": 1}, "mine.jsonl:9: film 1 is in test here and in train in line 2.*in one split"),
        (9, {"other": 0, "prompt": "{film} {other}"}, "mine.jsonl:9: film 0 is in test here and in train in line 1"),
    ],
)
def test_malformed_own_rows_name_line_and_remedy(tmp_path, line, change, message):
    rows = [dict(r) for r in SPLIT]
    rows[line - 1] |= change
    with pytest.raises(DataError, match=message):
        load_elm(write(tmp_path / "mine.jsonl", rows), 10)


def test_malformed_own_files(tmp_path):
    path = tmp_path / "mine.jsonl"
    with pytest.raises(DataError, match="mine.jsonl:1: missing column prompt, target"):
        load_elm(write(path, [{"task": "a", "item": 1}]), 10)
    path.write_text('{"task": \n')
    with pytest.raises(DataError, match="mine.jsonl:1: is no JSON"):
        load_elm(path, 10)
    path.write_text("[1]\n")
    with pytest.raises(DataError, match="mine.jsonl:1: is no JSON object"):
        load_elm(path, 10)
    with pytest.raises(DataError, match="no row is in test"):
        load_elm(write(path, SPLIT[:6]), 10)
    with pytest.raises(DataError, match="1 films cannot be split"):
        load_elm(write(path, GOOD[:1]), 10)
    with pytest.raises(DataError, match="gone.jsonl"):
        load_elm(tmp_path / "gone.jsonl", 10)
    (tmp_path / "bad.parquet").write_text("no")
    for name in ("bad", "gone"):
        with pytest.raises(DataError, match=f"{name}.parquet: cannot be read"):
            load_elm(tmp_path / f"{name}.parquet", 10)
    pd.DataFrame(GOOD).drop(columns="target").to_parquet(tmp_path / "few.parquet")
    with pytest.raises(DataError, match="few.parquet: missing column target"):
        load_elm(tmp_path / "few.parquet", 10)
    pd.DataFrame([*GOOD[:3], GOOD[3] | {"item": 77}]).to_parquet(tmp_path / "far.parquet")
    with pytest.raises(DataError, match="far.parquet:4: item is 77"):
        load_elm(tmp_path / "far.parquet", 10)
