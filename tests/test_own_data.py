"""From a CSV of one's own to recommendations with one's own titles, and what a stranger gets wrong on the way."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml
from test_data import REAL, ROOT

from ilm_lib import load_params, profiles
from ilm_lib.data import __main__ as command
from ilm_lib.data import download, load_openp5, missing_data
from ilm_lib.data.own_profile import Sizes, minutes, render
from ilm_lib.model.ilm import ILM
from ilm_lib.model.prompts import Item, User
from ilm_lib.settings import validate
from ilm_lib.study import inputs, stages

ITEMS = [f"größe-{n}" for n in range(60)]
TITLES = {item: f'Film „{n}“ "quoted" 🦊 ({1990 + n % 30})' for n, item in enumerate(ITEMS)}
QUICK = {
    "embeddings.iterations": 4,
    "phase1.steps": 6,
    "phase1.batch_size": 16,
    "backbone.steps": 20,
    "backbone.batch_size": 16,
    "backbone.layers": 1,
    "backbone.width": 32,
    "phase2.steps": 6,
    "phase2.eval_every": 6,
    "phase2.dev_users": 10,
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A folder with params/, data/ and runs/ of its own; the checkout is left alone."""
    (tmp_path / "Makefile").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(profiles, "ROOT", tmp_path)
    monkeypatch.setenv("ILM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path


def write_csv(folder, users=200, items=60, least=5):
    """Interactions of users who each like some items more; returns the path."""
    rng = np.random.default_rng(0)
    likes = rng.normal(size=(users, 4)) @ rng.normal(size=(4, items)) + rng.gumbel(size=(users, items))
    rows = [
        f"ålice-{u},{ITEMS[i]},{1000 * u + t}"
        for u in range(users)
        for t, i in enumerate(np.argsort(-likes[u])[: rng.integers(least, least + 12)])
    ]
    path = folder / "own.csv"
    path.write_text("\n".join(["user,item,timestamp", *rows, rows[0]]) + "\n", encoding="utf-8")
    return path


def write_texts(folder, items):
    records = [{"id": i, "title": TITLES[i], "genres": ["Drama", "Komödie"]} for i in items]
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def build(folder, *arguments, with_text=ITEMS, **sizes):
    arguments = [*arguments, "--texts", str(write_texts(folder, with_text))] if with_text else list(arguments)
    return command.main(["--csv", str(write_csv(folder, **sizes)), *arguments, "Mine"])


# ------------------------------------------------------------ the whole way


@pytest.mark.parametrize("with_text", [52, 8, 0])
def test_a_csv_ends_in_recommendations(home, capsys, with_text):
    """With a text for most items, for few and for none; the profile is as it was written but for its lengths."""
    assert build(home, with_text=ITEMS[:with_text]) == 0
    out = capsys.readouterr().out
    assert "1 interactions dropped: repeated pairs" in out and f"{60 - with_text} items without text" in out
    assert "wrote params/mine.yaml" in out and "next: make study PROFILE=mine\n" in out
    params = load_params("mine", **QUICK)
    text_losses = {"itc", "itg", "itm"} & set(params.losses_of("ILM"))
    assert bool(text_losses) == (with_text == 52) and missing_data(params) is None

    inputs.data(params, build=True)
    inputs.embeddings(params, 0, build=True)
    stages.phase1(params, 0, "ILM", build=True)
    stages.backbone(params, 0, build=True)
    stages.phase2(params, 0, "ILM", build=True)
    stages.load_ilm(params, 0, "ILM").save_pretrained(home / "model")
    ilm = ILM.from_pretrained(home / "model")

    titled = {**dict.fromkeys(ITEMS), **{i: TITLES[i] for i in ITEMS[:with_text]}}
    for row in (0, 59):
        item = ilm.item(ITEMS[row])
        assert ilm.id(item) == ITEMS[row] and ilm.title(item) == (titled[ITEMS[row]] or ITEMS[row])
        assert ilm.item(ilm.title(item)) == item
    assert ilm.id(ilm.user("ålice-7")) == "ålice-7"
    with pytest.raises(LookupError, match="no user has the id 'alice-7'. Close: 'ålice-7'"):
        ilm.user("alice-7")

    found = ilm.recommend(user=ilm.user("ålice-7"), history=[ilm.item(ITEMS[3]), ITEMS[59]], k=5)
    assert len({r.item for r in found}) == 5
    assert all(r.id in titled and r.title == (titled[r.id] or r.id) for r in found)
    assert not {r.id for r in found} & {ITEMS[3], ITEMS[59]}
    by_row = ilm.recommend(user=User(ilm.user("ålice-7").row), history=[ilm.item(ITEMS[3]), ilm.item(ITEMS[59])], k=5)
    assert [r.item for r in by_row] == [r.item for r in found] and isinstance(found[0].item, Item)


# ------------------------------------------------------------ the profile


def test_a_profile_that_exists_is_left_as_it_is(home, capsys):
    path = home / "params" / "mine.yaml"
    path.parent.mkdir()
    path.write_text("# by hand\ndata: {source: openp5, name: Mine, folder: openp5/Mine}\n")
    before = path.read_bytes()
    assert build(home) == 0
    out = capsys.readouterr().out
    assert "params/mine.yaml is there already, and is left as it is; --profile NAME writes another" in out
    assert "next: make study PROFILE=mine" in out and path.read_bytes() == before
    # The data are there: the profile alone, under another name.
    assert command.main(["Mine", "--profile", "other"]) == 0
    out = capsys.readouterr().out
    assert "wrote params/other.yaml" in out and "next: make study PROFILE=other" in out
    assert load_params("other").data.folder == "openp5/Mine" and path.read_bytes() == before
    # A profile of other data is not offered.
    path.write_text("profile: mine\n")
    assert command.main(["Mine"]) == 0
    out = capsys.readouterr().out
    assert "warning: it reads the toy world, not openp5/Mine: use --profile" in out and "next:" not in out
    path.write_text("profile: mine\nphase3: {}\n")
    assert command.main(["Mine"]) == 0
    assert "warning: it is no valid profile: mine.yaml:2: unknown parameter 'phase3'" in capsys.readouterr().out


def test_the_next_command_can_be_pasted(home, capsys, monkeypatch):
    """From another folder, with data in another place: quoted, and with all that it needs."""
    elsewhere = home / "else where"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.delenv("ILM_DATA_DIR")
    assert build(home, "--folder", "my data") == 0
    line = re.search("next: (.*)\n", capsys.readouterr().out)[1]
    (home / "Makefile").write_text('study:\n\t@echo "$$ILM_DATA_DIR|$(PROFILE)"\n')
    ran = subprocess.run(line, shell=True, check=True, capture_output=True, text=True).stdout  # noqa: S602 (as a user pastes it)
    assert f"{elsewhere / 'my data'}|mine" in ran
    (home / "Makefile").unlink()
    assert "load_params('mine')" in command.next_command("mine", home / "data")


@pytest.mark.parametrize("name", ["123", "Yes", "null", "1e5", "Größe_2.0"])
def test_names_that_yaml_would_read_as_something_else(home, name):
    assert command.main(["--csv", str(write_csv(home)), name]) == 0
    params = load_params(name.lower())
    assert (params.profile, params.data.name, params.data.folder) == (name.lower(), name, f"openp5/{name}")


SIZES = Sizes(
    users=1_000,
    items=300,
    interactions=15_000,
    examples=12_000,
    texts=300,
    words=30,
    vocabulary=800,
    films=300,
    longest=40,
)
SCALES = {
    "tiny": {
        "users": 20,
        "items": 20,
        "interactions": 90,
        "examples": 30,
        "texts": 0,
        "words": 0,
        "longest": 7,
        "films": 0,
    },
    "toy": {},
    "dense": {"users": 6_040, "items": 3_416, "interactions": 999_611, "longest": 2_000, "films": 3_000},
    "sparse": {"users": 39_387, "items": 23_033, "interactions": 278_677, "texts": 23_033, "films": 0},
    "huge": {"users": 5_000_000, "items": 900_000, "interactions": 90_000_000, "films": 900_000, "words": 900},
}


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_gives_a_valid_profile(scale):
    sizes = dataclasses.replace(SIZES, **SCALES[scale])
    text = render(sizes, "Mine", "mine", "openp5/Mine")
    params = validate(yaml.safe_load(text))
    assert params.data.history_max < sizes.longest and params.sasrec.dev_users <= sizes.users
    assert params.elm24.enabled == (sizes.films >= 100) and ("24 ELM tasks" in text) == (sizes.films < 100)
    assert ("itc" in params.phase1.losses) == (sizes.texts >= 50)
    assert ("losses of phase 1 that read texts" in text) == (sizes.texts < 50)
    assert minutes(sizes, params) in text


def test_more_data_take_longer_steps_and_larger_models():
    params = [
        validate(yaml.safe_load(render(dataclasses.replace(SIZES, **s), "Mine", "mine", "x"))) for s in SCALES.values()
    ]
    for section, key in (("phase1", "steps"), ("phase2", "steps"), ("backbone", "steps"), ("embeddings", "dim")):
        values = [getattr(getattr(p, section), key) for p in (params[0], params[1], params[2], params[4])]
        assert values == sorted(values) and values[0] < values[-1], (section, key)
    assert [p.backbone.index_tokens for p in params] == ["whole", "whole", "whole", "pairs", "pairs"]
    assert [p.evaluation.max_users for p in params] == [None, None, None, 5_000, 5_000]


@pytest.mark.parametrize("name", ["ML100K", "Beauty"])
def test_the_rules_come_near_the_profiles_tuned_by_hand(name):
    if not (REAL / name / "user_sequence.txt").exists():
        pytest.skip(f"no {name} in OpenP5's form under ILM_DATA_DIR or ../shared/data")
    scaled = validate(yaml.safe_load(render(Sizes.of(load_openp5(REAL / name)), name, name.lower(), f"openp5/{name}")))
    by_hand = load_params(ROOT / "params" / f"{name.lower()}-scored.yaml")
    assert scaled.embeddings == by_hand.embeddings and scaled.qformer.width == by_hand.qformer.width
    assert scaled.backbone.index_tokens == by_hand.backbone.index_tokens
    for section in ("phase1", "backbone", "phase2", "sasrec"):
        ours, theirs = getattr(scaled, section).steps, getattr(by_hand, section).steps
        assert theirs / 5 < ours < theirs * 5, section


# ------------------------------------------------------------ what is missing


def params_of(**changes):
    base = {"data.source": "openp5", "data.name": "ML100K", "data.folder": "openp5/ML100K"}
    toy = {"data.folder": None} if "data.source" in changes else {}
    return load_params(ROOT / "params" / "toy.yaml", **{**base, **toy, "elm24.enabled": False, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"data/openp5/ML100K is missing: `python -m ilm_lib\.data ML100K` downloads .*"),
        ({"data.templates": "openp5/prompt.txt"}, r".*ML100K is missing: `python -m ilm_lib\.data ML100K` .*"),  # both
        ({"data.folder": "openp5/Mine"}, r".*`python -m ilm_lib\.data --csv interactions\.csv .* Mine` makes .*"),
        ({"data.folder": "elsewhere"}, r".*data/elsewhere is missing: put a dataset in OpenP5's form there, .*"),
        ({"data.source": "toy", "data.templates": "openp5/prompt.txt"}, r".*`python -m .* prompts` .*use ours"),
        ({"data.source": "toy", "data.templates": "a.txt"}, r".*data/a\.txt is missing: .*data\.templates .*"),
        ({"data.source": "toy", "embeddings.file": "v.npz"}, r"v\.npz is missing: .*leave out embeddings\.file"),
        ({"data.source": "toy", "elm24.enabled": True, "elm24.file": "r.parquet"}, r".*leave out elm24\.file"),
        (
            {"data.source": "toy", "elm24.enabled": True, "elm24.other_films": "ml-latest-small"},
            r".*ml-latest-small lacks movies\.csv and overviews\.jsonl\.gz: .*leave out elm24\.other_films.*",
        ),
    ],
)
def test_what_is_missing_comes_with_its_remedy(changes, message):
    said = missing_data(params_of(**changes))
    assert re.fullmatch(f".*{message}", said), said


def test_nothing_is_missing(home):
    assert missing_data(load_params(ROOT / "params" / "toy.yaml")) is None
    build(home)
    assert missing_data(params_of(**{"data.folder": "openp5/Mine"})) is None
    facts = {"data.folder": "openp5/Mine", "elm24.enabled": True}
    assert missing_data(params_of(**facts)) is None
    said = missing_data(params_of(**facts, **{"elm24.min_facts": 2}))
    assert "0 items have 2 of genres, tags and overview" in said and "elm24.enabled: false" in said
    (home / ".venv" / "bin").mkdir(parents=True)
    (home / ".venv" / "bin" / "python").touch()
    assert "`.venv/bin/python -m ilm_lib.data ML100K`" in missing_data(params_of())


@pytest.mark.parametrize("profile", sorted(p.stem for p in (ROOT / "params").glob("*.yaml")))
def test_every_profile_of_the_study_says_what_it_lacks_in_two_lines(profile):
    said = missing_data(load_params(ROOT / "params" / f"{profile}.yaml"))
    assert (said is None) == (profile == "toy")
    assert said is None or (said.count("\n") <= 1 and "python -m ilm_lib.data" in said)


def test_prompts_come_with_the_data_that_need_them(home, capsys, monkeypatch):
    monkeypatch.setitem(download.FILES, "prompt.txt", download.RawFile((), "0" * 64))
    (home / "params").mkdir()
    (home / "params" / "mine.yaml").write_text(
        "data: {source: openp5, name: Mine, folder: openp5/Mine, templates: openp5/prompt.txt}\n"
    )
    assert build(home) == 0
    out = capsys.readouterr().out
    assert (
        "prompt.txt: is missing and no mirror gave it" in out and "leave out data.templates in params/mine.yaml" in out
    )
    assert command.main(["prompts"]) == 1
    assert "Put prompt.txt (SHA-256 000" in capsys.readouterr().err


# ------------------------------------------------------------ a stranger


@pytest.mark.parametrize(
    ("csv", "texts", "message"),
    [
        ("", None, r"own\.csv: is empty\. Write the header user,item,timestamp"),
        (
            "user,itme,timestamp\na,x,1\n",
            None,
            r"own\.csv:1: .* lacks item \(is 'itme' meant for 'item'\?\)\. Name the",
        ),
        ("user;item;timestamp\na;x;1,5\n", None, r"own\.csv:2: '1,5' is no timestamp\. Write whole numbers"),
        (
            "user,item,timestamp\na,x,1\na b,x,2\n",
            None,
            r"own\.csv:3: 'a b' is no user id\. Write ids as text without bl",
        ),
        (
            "user,item,timestamp\na,x,1\na,y,2\n",
            None,
            r"Mine: no interactions are left to write\. Lower the core or gi",
        ),
        (
            "user,item,timestamp\na,x,1\n",
            '{"id": "x", "title": "A "quote""}\n',
            r"texts\.jsonl:1: is no JSON \(.*column 26\)",
        ),
        (
            "user,item,timestamp\na,x,1\n",
            "id,title\nx,Ex\n",
            r"texts\.jsonl:1: is no JSON .*Write one JSON object a line",
        ),
    ],
)
def test_errors_are_one_line_with_file_line_and_remedy(home, capsys, csv, texts, message):
    (home / "own.csv").write_text(csv)
    (home / "texts.jsonl").write_text(texts or '{"id": "x"}\n')
    assert command.main(["--csv", "own.csv", "--texts", "texts.jsonl", "Mine"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.match(f"error: .*{message}", error), error
    assert not (home / "params").exists() and not (home / "data" / "openp5" / "Mine").exists()


def test_texts_of_other_items_are_told(home, capsys):
    path = home / "texts.jsonl"
    path.write_text('{"id": 1, "title": "One"}\n')
    assert command.main(["--csv", str(write_csv(home)), "--texts", str(path), "Mine"]) == 0
    out = capsys.readouterr().out
    assert "1 texts dropped" in out and "their ids differ" in out and "has '1', the interactions have 'größe-" in out


def test_users_without_a_training_example(home, capsys):
    """Three items a user leave nothing to learn from: said, and the data stay."""
    rows = [f"u{u},i{(u + k) % 30},{k}" for u in range(40) for k in range(3)]
    (home / "own.csv").write_text("\n".join(["user,item,timestamp", *rows]))
    assert command.main(["--csv", "own.csv", "Mine"]) == 0
    out = capsys.readouterr().out
    assert "no profile is written, the data are too small: Mine: 0 examples to train on" in out and "next:" not in out
    assert load_openp5(home / "data" / "openp5" / "Mine").num_users == 40


def test_the_command_is_quick_to_refuse(home):
    """No torch for a typo."""
    code = "import sys; from ilm_lib.data.__main__ import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code, "--csv", "nowhere.csv", "Mine"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "1 False\n"
    assert ran.stderr == "error: nowhere.csv: cannot be read (No such file or directory). Check the path.\n"
