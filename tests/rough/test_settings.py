"""Settings that cannot be meant, files that are no profile, and commands that cannot run: refused before any work.

One case a line: what is given, then words that the message must hold. `VALID` is what must go on working.
"""

import math
import os
from copy import deepcopy

import numpy as np
import pytest
import yaml
from plain import plain, refused
from safetensors.numpy import save_file
from scipy.sparse import csr_matrix

from ilm_lib import load_params, profiles
from ilm_lib.baselines.cf import fit_cf, load_cf
from ilm_lib.profiles import ROOT
from ilm_lib.settings import READINGS, Params, ParamsError
from ilm_lib.study import grid, plan

INF, NAN, HUGE = math.inf, math.nan, 10**30
OPENP5 = {"data.source": "openp5", "data.folder": "openp5/Mine", "data.name": "Mine"}
DATED = {**OPENP5, "data.split": "temporal"}

VALUES = [
    # whole numbers
    ("seed", -1, "0 or more"),
    ("seed", True, "is no number"),
    ("seed", 3.5, "no whole number"),
    ("seed", "abc", "'abc' is no whole number; give 0 or more"),
    ("seed", None, "no value", "leave the key out"),
    ("seed", HUGE, "too large", "2,147,483,647"),
    ("seed", 2**31, "too large"),
    ("seed", "9" * 30, "too large"),
    ("seed", "9" * 5000, "no whole number"),
    ("seed", 10**5000, "more than 30 digits"),
    ("seed", INF, "no finite number"),
    ("seed", NAN, "no finite number"),
    ("seed", [3], "no whole number"),
    ("seeds", [1, 1], "names 1 twice"),
    ("seeds", [-1], "seeds.0", "0 or more"),
    ("seeds", [True, 2], "is no number"),
    ("seeds", [0.5], "no whole number"),
    ("seeds", [HUGE], "too large"),
    ("seeds", 3, "is no list", "brackets"),
    ("seeds", "1,2", "is no list"),
    ("seeds", {"a": 1}, "is no list"),
    ("phase1.steps", 0, "1 or more"),
    ("phase1.steps", -5, "1 or more"),
    ("phase1.steps", "1e3", "no whole number"),
    ("phase1.steps", HUGE, "too large"),
    ("phase1.steps", 1e300, "phase1.steps"),
    ("phase1.steps", False, "is no number"),
    ("phase1.steps", {}, "no whole number"),
    ("phase1.accumulate", 0, "1 or more"),
    ("phase1.batch_size", 1, "2 to 1,000,000"),
    ("phase1.batch_size", 10**9, "2 to 1,000,000"),
    ("sasrec.width", 0, "1 to 65,536"),
    ("sasrec.width", HUGE, "65,536"),
    ("sasrec.layers", 5000, "1 to 1,024"),
    ("sasrec.heads", 5, "sasrec", "width 64", "heads 5"),
    ("sasrec.max_length", 0, "1 to 65,536"),
    ("sasrec.negatives", 0, "1 to 65,536"),
    ("sasrec.table_std", 0.0, "more than 0"),
    ("sasrec.eval_every", 0, "1 or more"),
    ("sasrec.dev_users", 0, "1 or more"),
    ("qformer.width", 10**8, "1 to 65,536"),
    ("qformer.heads", 5, "qformer", "width 64", "heads 5"),
    ("qformer.heads", 0, "1 to 1,024"),
    ("qformer.inner", 0, "1 to 65,536, or null"),
    ("qformer.layers", 0, "1 to 1,024"),
    ("qformer.num_query_tokens", 0, "1 to 1,024"),
    ("qformer.num_query_tokens", 10**6, "1 to 1,024"),
    ("qformer.cross_attention_frequency", 0, "1 to 1,024"),
    ("qformer.cf_keys", 0, "1 to 1,024"),
    ("qformer.contrast_dim", 0, "1 to 65,536, or null"),
    ("qformer.text_vocab", 300, "301 to 1,000,000"),
    ("qformer.text_vocab", 10**9, "301 to 1,000,000"),
    ("qformer.max_text_tokens", 4, "5 to 65,536"),
    ("qformer.max_text_tokens", 10**9, "5 to 65,536"),
    ("backbone.inner", 10**8, "1 to 65,536, or null"),
    ("backbone.heads", 5, "backbone", "width 128", "heads 5"),
    ("backbone.heads", 128, "backbone.width 128", "backbone.heads 128", "odd"),
    ("backbone.width", 12, "12", "backbone.heads 4", "odd"),
    ("backbone.vocab", 300, "301"),
    ("backbone.seed", -1, "0 or more, or null"),
    ("backbone.seed", True, "is no number"),
    ("phase2.mlp_tokens", 0, "1 to 1,024"),
    ("phase2.eval_every", 0, "1 or more"),
    ("phase2.dev_users", -1, "1 or more"),
    ("evaluation.beams", 9, "10 to 10,000"),
    ("evaluation.beams", 10**6, "10 to 10,000"),
    ("evaluation.beams", 301, "data.num_items 300"),
    ("evaluation.wide_beams", [10], "11 to 10,000"),
    ("evaluation.wide_beams", [40, 40], "names 40 twice"),
    ("evaluation.wide_beams", [20, 400], "400", "data.num_items 300"),
    ("evaluation.batch_size", 0, "1 or more"),
    ("evaluation.max_users", 0, "1 or more, or null"),
    ("evaluation.max_users", -1, "1 or more, or null"),
    ("ablations.max_users", 0, "1 or more, or null"),
    ("ablations.query_tokens", [0], "1 to 1,024"),
    ("ablations.query_tokens", [], "is empty"),
    ("ablations.query_tokens", [4, 4], "names 4 twice"),
    ("ablations.query_tokens", [10**6], "1 to 1,024"),
    ("ablations.query_tokens", 4, "is no list"),
    ("ablations.backbone_steps", [0], "1 or more"),
    ("ablations.backbone_steps", [5, 5], "names 5 twice"),
    ("ablations.seeds", 0, "1 to 1,024"),
    ("ablations.phase1_steps", 0, "1 or more"),
    ("ablations.phase2_steps", True, "is no number"),
    ("elm24.rows_per_task", 0, "1 or more, or null"),
    ("elm24.rows_per_task", -1, "1 or more, or null"),
    ("elm24.min_facts", 4, "0 to 3"),
    ("elm24.phase1_steps", 0, "1 or more"),
    ("elm24.backbone_batch_size", 1, "2 to"),
    ("elm24.max_new_tokens", 0, "1 to 65,536"),
    ("elm24.max_new_tokens", HUGE, "65,536"),
    ("elm24.no_repeat_ngram", -1, "0 or more"),
    ("elm24.max_text_tokens", 1, "5 to 65,536"),
    ("data.world_seed", -1, "0 or more"),
    ("data.world_seed", 1.5, "no whole number"),
    ("data.num_items", 79, "80 to 10,000"),
    ("data.num_items", 10**6, "80 to 10,000"),
    ("data.num_users", 49, "50 to 1,000,000"),
    ("data.num_users", 10**6, "data.num_items times data.num_users"),
    ("data.history_max", 0, "1 or more"),
    ("embeddings.dim", 0, "1 to 65,536"),
    ("embeddings.dim", "wide", "no whole number"),
    ("embeddings.iterations", 0, "1 or more"),
    # numbers
    ("phase1.lr", 0, "more than 0"),
    ("phase1.lr", -1e-3, "more than 0"),
    ("phase1.lr", INF, "no finite number"),
    ("phase1.lr", NAN, "no finite number"),
    ("phase1.lr", "nan", "no finite number"),
    ("phase1.lr", "1e999", "no finite number"),
    ("phase1.lr", 1e6, "at most 10"),
    ("phase1.lr", 10**400, "phase1.lr"),
    ("phase1.lr", True, "is no number"),
    ("phase1.lr", "fast", "'fast' is no number"),
    ("phase1.lr", None, "no value"),
    ("phase2.weight_decay", INF, "no finite number"),
    ("phase2.weight_decay", -0.1, "0 to 10"),
    ("backbone.warmup", 1, "0 or more and less than 1"),
    ("backbone.warmup", NAN, "no finite number"),
    ("sasrec.dropout", 1.0, "less than 1"),
    ("sasrec.dropout", -INF, "no finite number"),
    ("phase1.temperature_text", INF, "no finite number"),
    ("phase1.temperature_text", 0, "0.001 to 100"),
    ("phase1.temperature_negatives", 1e-30, "0.001 to 100"),
    ("phase1.temperature_negatives", NAN, "no finite number"),
    ("phase1.temperature_interaction", 1e9, "0.001 to 100"),
    ("phase1.temperature_interaction", INF, "no finite number"),
    ("phase1.holdout", 0.5, "less than 0.5"),
    ("phase1.holdout", 1e-12, "0.001 or more"),
    ("embeddings.regularization", -1, "0 to 1,000, or null"),
    ("embeddings.regularization", INF, "no finite number"),
    ("embeddings.regularization", 1e30, "0 to 1,000"),
    ("embeddings.unobserved_weight", 0, "to 100"),
    ("embeddings.unobserved_weight", NAN, "no finite number"),
    ("embeddings.unobserved_weight", 1e-30, "to 100"),
    ("elm24.test_fraction", 1, "less than 1"),
    ("elm24.test_fraction", 0, "more than 0"),
    ("elm24.backbone_lr", 0, "more than 0 and at most 10, or null"),
    ("elm24.backbone_lr", INF, "no finite number"),
    # one of several, true or false, sections
    ("phase1.losses", ["itc", "xyz"], "'xyz' is none of itc, itg, itm, ii, ui"),
    ("phase1.losses", ["itc", "itc"], "twice"),
    ("phase1.losses", [], "is empty"),
    ("phase1.losses", "itc", "is no list"),
    ("phase1.schedule", "cosin", "none of linear, cosine"),
    ("phase1.query_selection", 1, "none of positive, best"),
    ("backbone.precision", "half", "none of float32, bfloat16, auto"),
    ("backbone.index_tokens", None, "no value", "pairs, whole"),
    ("data.source", "real", "none of toy, openp5"),
    ("embeddings.engine", "als", "none of implicit, irspack"),
    ("evaluation.prompts", [], "is empty"),
    ("evaluation.prompts", ["seen", "seen"], "twice"),
    ("evaluation.histories", [], "is empty"),
    ("evaluation.histories", ["kept", "kept"], "twice"),
    ("evaluation.histories", ["cut"], "none of kept, excluded"),
    ("evaluation.enabled", "maybe", "neither true nor false"),
    ("evaluation.constrained", 2, "neither true nor false"),
    ("method", "ILM-all", "ILM-all", "OpenP5-R"),
    ("method", 3, "is no text"),
    ("methods", [], "is empty"),
    ("methods", ["MLP", "MLP"], "names 'MLP' twice"),
    ("methods", ["MLP", "ILM-all"], "ILM-all", "OpenP5-R"),
    ("methods", ["x" * 5000], "unknown"),
    ("methods", "ILM", "is no list"),
    ("methods", [["ILM"]], "methods.0", "no text"),
    ("phase1", 3, "no section"),
    ("phase1", None, "no value"),
    ("phase1", [1], "no section"),
    ("data", "toy", "no section"),
    # names and places
    ("data.name", "", "is blank"),
    ("data.name", "  ", "is blank"),
    ("data.name", "a\nb", "not printed"),
    ("data.name", "a\x00b", "not printed"),
    ("data.name", "a\tb", "not printed"),
    ("data.name", "\u202eyoT", "not printed"),
    ("data.name", "\ud800", "not printed"),
    ("data.name", " Toy", "blank"),
    ("data.name", "x" * 101, "101 characters"),
    ("data.name", 2024, "is no text; write it in quotes"),
    ("data.name", True, "is no text"),
    ("data.name", None, "no value"),
    ("data.history_separator", "", "cannot part"),
    ("data.history_separator", "1", "digits"),
    ("data.history_separator", "\x00", "cannot part"),
    ("data.history_separator", "-" * 21, "1 to 20"),
    ("data.folder", "openp5/Mine", "data.source: openp5"),
    ("data.templates", "", "is blank"),
    ("data.cold_items", 0, "more than 0"),
    ("data.cold_items", 1, "less than 1"),
    ("data.cold_items", "some", "no number"),
    ("data.split", "random", "none of leave_one_out, temporal"),
    ("data.dev_from", 0, "neither a share nor a date", "2015-06-01"),
    ("data.dev_from", 1.0, "neither a share"),
    ("data.dev_from", NAN, "neither a share"),
    ("data.dev_from", True, "is no number"),
    ("data.dev_from", "2015", "neither a share"),
    ("data.dev_from", "2015-13-01", "neither a share"),
    ("data.test_from", [0.9], "neither a share"),
    ("data.test_from", None, "data.test_from"),
    ("data.split", "temporal", "toy world has none"),
    ("data.dev_from", 0.7, "data.split: temporal alone"),
    ("data.templates", "~/prompt.txt", "begins with ~"),
    ("data.templates", "a\nb", "not printed"),
    ("embeddings.file", "", "is blank"),
    ("embeddings.file", "vectors.csv", ".npz nor .safetensors"),
    ("embeddings.file", "~/v.npz", "begins with ~"),
    ("elm24.file", "a\x00b", "not printed"),
    ("elm24.file", " ", "is blank"),
    ("elm24.other_films", "", "is blank"),
    ("qformer.text_tower", "", "is blank"),
    ("elm24.sentence_encoder", "x\n", "not printed"),
    ("backbone.pretrained", "", "is blank"),
    ("backbone.pretrained", "~/llm", "begins with ~"),
    ("elm24.teacher", "gpt", "none of template, hf, openai"),
    # keys
    ("metods", ["ILM"], "unknown parameter 'metods'", "Did you mean 'methods'"),
    ("phase1.stepz", 3, "'phase1.stepz'", "Did you mean 'steps'", "ilm_lib/settings.py"),
    ("num_items", 300, "Did you mean 'data.num_items'"),
    ("xyz", 1, "unknown parameter 'xyz'", "Allowed: ablations"),
    ("x" * 5000, 1, "unknown parameter", "Allowed"),
    ("elm24.xyz", 1, "'elm24.xyz'", "ilm_lib/settings.py"),
    ("phase1.steps.x", 1, "phase1.steps"),
    ("", 1, "no dotted key"),
    ("phase1.", 1, "no dotted key"),
    ("profile", "other", "profile", "overrides"),
    ("profile.x", 1, "profile"),
    # readings
    ("ablations.readings", {"colder": {"phase1.temprature": 0.1}}, "'colder'", "'phase1.temprature'"),
    ("ablations.readings", {"colder": {"phase1.temperature_text": INF}}, "'colder'", "no finite number"),
    ("ablations.readings", {"a": {"profile": "x"}}, "'a'", "profile"),
    ("ablations.readings", {"a": {"seeds": [3]}}, "'a'", "seeds"),
    ("ablations.readings", {"as in the profile": {}}, "another name"),
    ("ablations.readings", {"": {}}, "is blank"),
    ("ablations.readings", {"a\nb": {}}, "not printed"),
    ("ablations.readings", {"a": 3}, "no section"),
    ("ablations.readings", {"a": {1: 2}}, "no text"),
    ("ablations.readings", {1: {}}, "no text"),
    ("ablations.readings", [], "no section"),
]

TOGETHER = [
    ({"data.source": "openp5"}, "data.folder", "is needed"),
    ({**OPENP5, "data.num_items": 500}, "data.num_items", "toy"),
    ({**OPENP5, "data.num_users": 500}, "data.num_users", "toy"),
    ({**OPENP5, "data.world_seed": 1}, "data.world_seed", "toy"),
    ({**OPENP5, "data.folder": "~/Mine"}, "begins with ~"),
    ({**DATED, "data.dev_from": 0.9}, "data.dev_from 0.9 does not come before data.test_from 0.9"),
    ({**DATED, "data.dev_from": "2015-06-01"}, "does not come before", "two dates"),
    ({**DATED, "data.dev_from": "2015-06-02", "data.test_from": "2015-06-01"}, "does not come before"),
    ({"evaluation.beams": 50, "evaluation.wide_beams": [40, 60]}, "40", "evaluation.beams 50"),
    ({"evaluation.enabled": False, "elm24.enabled": False, "chat.enabled": False}, "nothing to study"),
    ({"backbone.pretrained": "llm", "ablations.backbone_steps": [5]}, "backbone.pretrained", "leave one out"),
    ({"qformer.text_tower": "minilm", "qformer.inner": 100}, "qformer.inner", "qformer.text_tower", "leave it out"),
    ({"phase1.optimizer": "adamw", "phase1.relative": False}, "phase1", "relative: false", "adafactor"),
    ({"embeddings.file": "v.npz", "ablations.readings": READINGS}, "CF dimension 32", "embeddings.file"),
    ({"backbone.pretrained": "x", "ablations.readings": {"a": {"backbone.lr": 0.1}}}, "'a'", "backbone.pretrained"),
    ({"elm24.teacher": "hf"}, "elm24.teacher_model"),
    ({"elm24.teacher": "openai", "elm24.teacher_model": "m"}, "elm24.teacher_url"),
    ({"elm24.teacher_model": "m"}, "elm24.teacher"),
    ({"elm24.file": "rows.jsonl", "elm24.teacher": "hf", "elm24.teacher_model": "m"}, "elm24.file"),
    ({"seed": -1, "phase1.steps": 0, "data.name": ""}, "seed: -1", "data.name, phase1.steps"),
    ({f"phase1.{'x' * 60}{n}": 1 for n in range(30)}, "unknown parameter", "Wrong, too"),
]

URLS = ["ftp://x/v1", "http://", "http://me:SECRET@host/v1", "http://h:99999/v1", "http://h:0/v1", "localhost:8000", ""]

FILES = [
    ("list", b"- 1\n- 2\n", "mine.yaml:1", "is a list"),
    ("scalar", b"\n\njust words\n", "mine.yaml:3", "single value"),
    ("number", b"3\n", "single value"),
    ("empty", b"", "mine.yaml is empty"),
    ("comments alone", b"# nothing\n\n", "mine.yaml is empty"),
    ("null", b"null\n", "single value"),
    ("not UTF-8", b"seed: 1\ndata: {name: B\xfccher}\n", "mine.yaml:2", "save the file as UTF-8"),
    ("UTF-16", "seed: 1\n".encode("utf-16"), "UTF-8"),
    ("NUL bytes", b"seed: 1\nmethod: ML\x00P\n", "mine.yaml:2", "U+0000"),
    ("an escape", b"seed: 1\n\x1b[31m", "mine.yaml:2", "U+001B"),
    ("extends itself", b"seed: 1\nextends: mine\n", "mine.yaml:2: extends", "is what this profile is made of"),
    ("extends nothing", b"extends: toi\n", "mine.yaml:1: extends", "no profile 'toi'", "Did you mean 'toy'?"),
    ("extends a list", b"extends: [toy]\n", "mine.yaml:1: extends", "is no name"),
    ("extends a file", b"extends: toy.yaml\n", "mine.yaml:1: extends", "is no name"),
    ("extends, and is wrong itself", b"extends: toy\nphase1: {stepz: 3}\n", "mine.yaml:2", "stepz"),
    ("a tab", b"phase1:\n\tsteps: 3\n", "line 2, column 1", "a tab"),
    ("an open bracket", b"phase1: {steps: [\n", "not valid YAML", "line 2"),
    ("an open quote", b"data: {name: 'Toy}\n", "not valid YAML", "line"),
    ("two colons", b"seed: 1: 2\n", "not valid YAML", "line 1"),
    ("bad indentation", b"phase1:\n   steps: 3\n  lr: 0.1\n", "not valid YAML", "line 3"),
    ("two documents", b"seed: 1\n---\nseed: 2\n", "second document", "line 2"),
    ("a wrong alias", b"seed: *one\n", "undefined alias", "line 1"),
    ("an anchor in itself", b"ablations: &a {readings: {x: *a}}\n", "mine.yaml:1", "anchor holds itself"),
    (
        "anchors that explode",
        b"a: &a0 [1]\n" + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b"*a%d, " % (n - 1) * 9) for n in range(1, 7)),
        "more than 20,000 values",
    ),
    ("a key twice", b"seed: 1\nphase1: {lr: 0.1}\nseed: 2\n", "mine.yaml:3", "'seed'", "line 1"),
    ("a section twice", b"phase1: {lr: 0.1}\nphase1: {steps: 3}\n", "mine.yaml:2", "'phase1'", "line 1"),
    ("a key twice below", b"phase1:\n  lr: 0.1\n  steps: 3\n  lr: 0.2\n", "mine.yaml:4", "'phase1.lr'", "line 2"),
    ("a key twice in braces", b"phase1: {lr: 0.1, lr: 0.2}\n", "mine.yaml:1", "'phase1.lr'"),
    ("a reading twice", b"ablations: {readings: {a: {}, b: {}, a: {}}}\n", "'ablations.readings.a'"),
    ("quotes do not make another key", b'seed: 1\n"seed": 2\n', "mine.yaml:2", "'seed'"),
    ("a number for a key", b"1: 2\n", "mine.yaml:1", "the key '1' is no text"),
    ("nothing for a key", b"phase1: {~: 2}\n", "is no text"),
    ("true for a key", b"yes: 2\n", "the key 'yes' is no text"),
    ("a list for a key", b"[a, b]: 2\n", "is no text"),
    ("a tag", b"seed: !!python/object:os.system {}\n", "mine.yaml:1", "tag", "not allowed"),
    ("a tag of one's own", b"seed: !mine 3\n", "tag", "not allowed"),
    ("an octal number", b"phase1: {steps: 010}\n", "mine.yaml:1", "'010'"),
    ("a number by sixties", b"phase1:\n  steps: 1:30\n", "mine.yaml:2", "'1:30'"),
    ("a date for a name", b"data: {name: 2024-01-01}\n", "mine.yaml:1: data.name", "is no text; write it in quotes"),
    ("a date that is none", b"data: {name: 2024-99-99}\n", "not valid YAML"),
    ("no for a name", b"data: {name: no}\n", "mine.yaml:1: data.name", "is no text"),
    ("a section without keys", b"seed: 3\nphase1:\n", "mine.yaml:2: phase1 has no value"),
    ("an unknown key", b"seed: 1\nqformer: {widht: 96}\n", "mine.yaml:2: ", "'qformer.widht'", "'width'"),
    ("a wrong value", b"seed: 1\nphase1:\n  steps: 0\n", "mine.yaml:3: phase1.steps: 0"),
    ("a wrong value in a list", b"seed: 1\nseeds: [1, x]\n", "mine.yaml:2: seeds.1: 'x'"),
    ("a dotted key", b"phase1.steps: 3\n", "mine.yaml:1: ", "phase1: {steps: ...}"),
    ("an infinity", b"phase1: {lr: .inf}\n", "no finite number"),
    ("very deep", b"seed: " + b"[" * 5000 + b"]" * 5000, "nested too deeply"),
    ("very large", b"# " + b"x" * 300_000, "more than 250,000 bytes"),
    ("very many digits", b"seed: " + b"9" * 5000, "mine.yaml"),
    ("another's profile", b"seed: 1\nprofile: toy\n", "mine.yaml:2", "'toy'", "write profile: mine or leave the line"),
    ("other letters", b"profile: Mine\n", "'Mine'", "write profile: mine"),
    ("a path for a profile", b"profile: ../../x\n", "profile: '../../x'", "cannot name a folder"),
    ("a number for a profile", b"profile: 2024\n", "profile: 2024 is no text"),
    ("no profile", b"profile:\n", "profile has no value"),
    ("an empty profile", b"profile: ''\n", "cannot name a folder"),
    ("a folder without its source", b"data:\n  name: Mine\n  folder: x\n", "mine.yaml:1", "data.source: openp5"),
    ("a source without a name", b"data: {source: openp5, folder: openp5/Mine}\n", "data.name is needed"),
]  # fmt: skip

NAMES = [
    "",
    "x/y",
    "../toy",
    "..",
    ".",
    "-x",
    "a b",
    "x; touch y",
    "toy.",
    "con",
    "NUL",
    "com1.x",
    "a\0b",
    "a\nb",
    "x" * 101,
]

COMMANDS = [
    (["toy", "--seeds", "abc"], "--seeds", "'abc' is no whole number from 1"),
    (["toy", "--seeds", ""], "--seeds", "''"),
    (["toy", "--seeds", "0"], "--seeds", "'0'"),
    (["toy", "--seeds", "-1"], "--seeds", "'-1'"),
    (["toy", "--seeds", "1.5"], "--seeds", "'1.5'"),
    (["toy", "--seeds", "1_0"], "--seeds", "'1_0'"),
    (["toy", "--seeds", "\u0663"], "--seeds"),
    (["toy", "--seeds", "9" * 5000], "--seeds"),
    (["toy", "--seeds=5000"], "--seeds", "1,000"),
    (["toy", "--seeds"], "--seeds"),
    (["toy", "--cores", "x"], "--cores", "'x'"),
    (["toy", "--cores", "0"], "--cores", "'0'"),
    (["toy", "--seed", "3"], "'--seed' is unknown", "--seeds"),
    (["toy", "--core=3"], "'--core' is unknown", "--cores"),
    (["toy", "mine"], "'mine'", "one profile alone"),
    (["--profile", "toy"], "--profile", "'toy' alone"),
    ([], "no profile is given"),
    (["-x"], "no profile is given"),
    ([""], "no profile ''"),
    (["goood"], "no profile 'goood'", "Did you mean 'good'"),
    (["../toy"], "no profile '../toy'"),
    (["x; touch y"], "no profile 'x; touch y'"),
    (["nowhere/mine.yaml"], "mine.yaml", "cannot be read"),
    (["broken"], "broken.yaml", "line 1"),
    (["list"], "list.yaml:1", "is a list"),
    (["copy"], "copy.yaml:1", "'toy'"),
    (["twice"], "twice.yaml:2", "'seed'"),
    (["typo"], "typo.yaml:1", "Did you mean 'steps'"),
    (["seeds"], "seeds: [3, 4]", "leave seeds out"),
    (["late", "--seeds", "3"], "seed: 2147483646"),
    (["one-history"], "evaluation", "kept and excluded"),
    (["unseen"], "evaluation", "seen"),
    (["folder-alone"], "folder-alone.yaml:1", "data.source: openp5"),
    (["ml100k"], "ML100K is missing"),
    (["elsewhere/toy.yaml"], "toy.yaml", "put it there"),
    (["elsewhere/far.yaml"], "far.yaml", "put it there"),
]

PROFILES = {
    "broken": "phase1: }\n", "list": "- 1\n", "copy": "profile: toy\n", "twice": "seed: 1\nseed: 2\n",
    "typo": "phase1: {stepz: 3}\n", "seeds": "seeds: [3, 4]\n", "late": "seed: 2147483646\n",
    "one-history": "evaluation: {histories: [kept]}\n", "unseen": "evaluation: {prompts: [unseen]}\n",
    "folder-alone": "data: {folder: x}\n", "toy": "seed: 0\n", "good": "seed: 3\nseeds: [3]\n",
    "ml100k": "data: {source: openp5, name: ML100K, folder: openp5/ML100K}\n",
}  # fmt: skip

GOOD = {"user": np.ones((3, 2), np.float32), "item": np.ones((5, 2), np.float32)}


class Marker:
    """What only a pickle can hold."""


#: Beside `GOOD`, or in place of it; a None is left out.
VECTORS = [
    ("all zero", {"item": np.zeros((5, 2), np.float32)}, "item embeddings are all zero"),
    ("users all zero", {"user": np.zeros((3, 2))}, "user embeddings are all zero"),
    ("as good as zero", {"item": np.full((5, 2), 1e-40, np.float32)}, "item embeddings are all zero"),
    ("too large", {"item": np.full((5, 2), 1e30, np.float32)}, "item embeddings are too large"),
    ("too large for float32", {"item": np.full((5, 2), 1e300)}, "item embeddings are not finite", "row 0"),
    ("not a number", {"user": np.array([[0, 1], [NAN, 0], [1, 1]])}, "user embeddings are not finite", "row 1"),
    ("infinite", {"item": np.full((5, 2), INF, np.float32)}, "item embeddings are not finite"),
    ("one row short", {"item": np.ones((4, 2), np.float32)}, "item embeddings of shape (4, 2) for 5 items"),
    ("one row more", {"user": np.ones((4, 2), np.float32)}, "user embeddings of shape (4, 2) for 3 users"),
    ("turned round", {"item": np.ones((2, 5), np.float32)}, "item embeddings of shape (2, 5) for 5 items"),
    ("of two widths", {"item": np.ones((5, 3), np.float32)}, "differ in width: 2 and 3"),
    ("of no width", {"user": np.ones((3, 0)), "item": np.ones((5, 0))}, "all zero"),
    ("one number an item", {"item": np.ones(5, np.float32)}, "must be floats of shape (rows, d)"),
    ("three axes", {"item": np.ones((5, 2, 1), np.float32)}, "must be floats of shape (rows, d)"),
    ("a single number", {"item": np.float32(1)}, "for 5 items"),
    ("whole numbers", {"item": np.ones((5, 2), np.int64)}, "must be floats", "int64"),
    ("truths", {"item": np.ones((5, 2), bool)}, "must be floats", "bool"),
    ("complex", {"item": np.ones((5, 2), complex)}, "must be floats", "complex"),
    ("words", {"item": np.full((5, 2), "x")}, "must be floats"),
    ("a pickle", {"item": np.full((5, 2), Marker())}, "Python objects"),
    ("no items", {"item": None}, "no array 'item'", "['user']"),
    ("another name", {"item": None, "items": np.ones((5, 2))}, "no array 'item'"),
    ("no arrays", {"item": None, "user": None}, "no array 'user'"),
    ("many others", {"item": None, **{f"array_{n}": np.ones(1) for n in range(200)}}, "no array 'item'"),
]

VALID = [
    ("seed", "3", 3),
    ("seed", 3.0, 3),
    ("seed", 2**31 - 1, 2**31 - 1),
    ("seeds", [], ()),
    ("seeds", [3, 1, 2], (3, 1, 2)),
    ("phase1.lr", "1e-3", 1e-3),
    ("phase1.lr", 1, 1.0),
    ("phase1.warmup", 0, 0.0),
    ("phase1.losses", ["ui"], ("ui",)),
    ("phase1.losses", ("ii", "ui"), ("ii", "ui")),
    ("backbone.heads", 64, 64),
    ("backbone.seed", None, None),
    ("backbone.pretrained", "org/a-model", "org/a-model"),
    ("qformer.contrast_dim", None, None),
    ("qformer.text_tower", "minilm", "minilm"),
    ("embeddings.regularization", 0, 0.0),
    ("embeddings.file", "/some/where/v.npz", "/some/where/v.npz"),
    ("embeddings.file", "../v.safetensors", "../v.safetensors"),
    ("data.name", "Bücher & Cie. <3>", "Bücher & Cie. <3>"),
    ("data.name", "2024", "2024"),
    ("data.history_separator", "\n", "\n"),
    ("data.history_separator", " and ", " and "),
    ("data.templates", "my prompts/a b.txt", "my prompts/a b.txt"),
    ("data.num_items", 80, 80),
    ("evaluation.enabled", "no", False),
    ("evaluation.enabled", 0, False),
    ("evaluation.max_users", 1, 1),
    ("evaluation.beams", 300, 300),
    ("evaluation.wide_beams", [300, 11], (300, 11)),
    ("evaluation.histories", ["excluded"], ("excluded",)),
    ("elm24.rows_per_task", None, None),
    ("elm24.teacher_key_env", None, None),
    ("methods", ["ILM"], ("ILM",)),
    ("method", "MLP", "MLP"),
    ("ablations.query_tokens", [8, 1], (8, 1)),
    ("ablations.readings", {}, {}),
    ("ablations.readings", {"größer, 2": {"embeddings.dim": 64}}, {"größer, 2": {"embeddings.dim": 64}}),
]

VALID_FILES = [
    (b"{}\n", "seed", 0),
    (b"\xef\xbb\xbfseed: 3\n", "seed", 3),
    (b"seed: 3\r\nmethod: MLP\r\n", "method", "MLP"),
    (b"--- # one document\nseed: 3\n...\n", "seed", 3),
    (b"seed: 1_000\n", "seed", 1000),
    (b"seed: 0\n", "seed", 0),
    (b"extends: toy\nseed: 4\n", "phase1.steps", load_params("toy").phase1.steps),
    (b"extends: toy\nphase1: {steps: 9}\n", "phase1.lr", load_params("toy").phase1.lr),
    (b"extends: toy\nphase1: {steps: 9}\n", "phase1.steps", 9),
    (b"extends: toy\n", "profile", "mine"),
    (b"phase1: {lr: 1e-3}\n", "phase1.lr", 1e-3),
    (b"phase1: {lr: 1.0e-3}\n", "phase1.lr", 1e-3),
    (b"profile: mine\n", "profile", "mine"),
    (b"seed: 3\n", "profile", "mine"),
    (b"data: {name: '2024-01-01'}\n", "data.name", "2024-01-01"),
    ('data: {name: "Büch\\u00e9r"}\n'.encode(), "data.name", "Büchér"),
    (b"phase1: &a {lr: 0.1}\nphase2: {<<: *a, steps: 3}\n", "phase2.lr", 0.1),
    (b"phase1: &a {lr: 0.1}\nphase2: {<<: *a, lr: 0.2}\n", "phase2.lr", 0.2),
    (b"evaluation: {enabled: off}\n", "evaluation.enabled", False),
    (b"data: {source: openp5, name: Mine, folder: /far/Mine, num_items: 300}\n", "data.folder", "/far/Mine"),
]


def read(params: Params, key: str):
    for part in key.split("."):
        params = getattr(params, part)
    return params


def name_of(value) -> str:
    """A case's name for pytest; long and odd values are cut and escaped."""
    return ascii(value)[:30] if not isinstance(value, int) or abs(value) < 10**20 else "huge"


@pytest.fixture(scope="module", autouse=True)
def toy_is_read_once():
    """Reading YAML is what takes the time of hundreds of cases."""
    path, read_yaml = ROOT / "params" / "toy.yaml", profiles.read_yaml
    toy = read_yaml(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiles, "read_yaml", lambda p: deepcopy(toy) if p == path else read_yaml(p))
        yield


@pytest.fixture
def mine(tmp_path):
    """Writes a profile called mine."""

    def write(data: bytes):
        (tmp_path / "mine.yaml").write_bytes(data)
        return tmp_path / "mine.yaml"

    return write


@pytest.mark.parametrize("key, value, words", [(k, v, w) for k, v, *w in VALUES], ids=name_of)
def test_a_value_that_cannot_be_meant_is_refused(key, value, words):
    message = refused(lambda: load_params("toy", **{key: value}), *words)
    assert "pydantic" not in message and "Input should" not in message


@pytest.mark.parametrize("changes, words", [(c, w) for c, *w in TOGETHER], ids=name_of)
def test_settings_that_contradict_each_other_are_refused(changes, words):
    refused(lambda: load_params("toy", **changes), *words)


@pytest.mark.parametrize("url", URLS)
def test_an_address_that_is_none_is_refused_and_not_repeated(url):
    given = {"elm24.teacher": "openai", "elm24.teacher_model": "m", "elm24.teacher_url": url}
    message = refused(lambda: load_params("toy", **given), "elm24.teacher_url")
    assert "SECRET" not in message


@pytest.mark.parametrize("key", ["elm24.teacher_key_env", "elm24.teacher_url"])
@pytest.mark.parametrize("value", ["sk-SECRET", ["SECRET"], {"a": "SECRET"}, ""])
def test_a_key_in_place_of_its_variables_name_is_refused_and_not_repeated(key, value):
    given = {"elm24.teacher": "openai", "elm24.teacher_model": "m", "elm24.teacher_url": "http://h/v1", key: value}
    assert "SECRET" not in refused(lambda: load_params("toy", **given), key)


@pytest.mark.parametrize("data, words", [(d, w) for _, d, *w in FILES], ids=[name for name, *_ in FILES])
def test_a_file_that_is_no_profile_is_refused(mine, data, words):
    path = mine(data)
    refused(lambda: load_params(path), *words)
    refused(lambda: load_params({"profile": str(path)}), *words)


def test_a_file_that_cannot_be_read_is_refused(tmp_path, mine, monkeypatch):
    (tmp_path / "folder.yaml").mkdir()
    refused(lambda: load_params(tmp_path / "folder.yaml"), "folder.yaml is a folder")
    refused(lambda: load_params(tmp_path / "none.yaml"), "none.yaml cannot be read", "No such file")
    refused(lambda: load_params(tmp_path / f"{'x' * 300}.yaml"), "cannot be read")
    path = mine(b"seed: 3\n")
    monkeypatch.setattr(type(path), "open", lambda *_: open(os.devnull, "x"))
    refused(lambda: load_params(path), "mine.yaml cannot be read", "permissions")


def test_a_name_that_the_folder_spells_otherwise_is_refused(mine, monkeypatch):
    path = mine(b"seed: 3\n")
    monkeypatch.setattr(profiles.os, "listdir", lambda _: ["Mine.yaml"])  # as where a and A are one
    refused(lambda: load_params(path), "mine.yaml", "called otherwise")


@pytest.mark.parametrize("name", NAMES, ids=name_of)
def test_what_cannot_name_a_folder_is_no_profile(mine, name):
    refused(lambda: load_params(name), "no profile", "Known: ")
    refused(lambda: load_params({"profile": name}), "profile")
    refused(lambda: load_params("toy").with_(profile=name), "cannot name a folder")


@pytest.mark.parametrize("source", [None, 5, True, ["toy"], b"toy", {"profile": 5}, {"profile": ["toy"]}], ids=name_of)
def test_what_is_no_name_is_no_profile(source):
    refused(lambda: load_params(source), "profile", "is no name")


@pytest.mark.parametrize(
    "cells, words",
    [
        ({"overrides": {"profile": "ml100k"}}, ["overrides: profile"]),
        ({"overrides": [1]}, ["overrides", "no mapping"]),
        ({"overrides": "phase1.steps=3"}, ["overrides", "no mapping"]),
        ({"overrides": {1: 2}}, ["overrides", "no dotted key"]),
        ({"overrides": {"phase1.stepz": 2}}, ["'phase1.stepz'"]),
        ({"phase1": {"stepz": 2}}, ["'phase1.stepz'"]),
        ({"phase1": 3}, ["phase1", "no section"]),
        ({"phase1": {3: 3}}, ["the key phase1.3 is no text"]),
        ({"sede": 3}, ["'sede'", "Did you mean 'seed'"]),
        ({"methods": {"ILM"}}, ["methods", "a set is no plain value"]),
        ({"profile": ROOT / "params" / "toy.yaml"}, ["profile", "no plain value"]),
        ({"profile": ""}, ["profile", "is no name"]),
        ({"seed": "x"}, ["seed: 'x'"]),
    ],
    ids=name_of,
)
def test_a_parameters_cell_that_cannot_be_meant_is_refused(cells, words):
    refused(lambda: load_params({"__name__": "__main__", "profile": "toy", **cells}), *words)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """`python -m ilm_lib.study` in a checkout with odd profiles: what it returns, and that nothing was started."""
    for name, text in PROFILES.items():
        folder = tmp_path / "params"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    for name in ("toy", "far"):
        (tmp_path / "elsewhere" / f"{name}.yaml").write_text("seed: 5\n")
    started = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(profiles, "ROOT", tmp_path)
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("ILM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(grid, "_follow", lambda command, *_: started.append(command) or (0, True))
    return started


@pytest.mark.parametrize("arguments, words", [(a, w) for a, *w in COMMANDS], ids=name_of)
def test_a_study_that_cannot_run_says_so_in_a_line(study, capsys, tmp_path, arguments, words):
    assert grid.main(arguments) in (1, 2)
    out, err = capsys.readouterr()
    assert err.startswith("✗ ") and out == "" and study == [] and not (tmp_path / "runs").exists()
    plain(err, *words)
    assert "usage" not in err and err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["good"], ["toy", "--seeds", "007"], ["params/good.yaml", "--until", "data"]])
def test_a_study_that_can_run_starts(study, arguments):
    grid.main(arguments)
    assert len([command for command in study if "snakemake" in command]) == 1


@pytest.mark.parametrize("key, value, becomes", VALID, ids=name_of)
def test_a_valid_value_is_taken(key, value, becomes):
    found = read(load_params("toy", **{key: value}), key)
    assert found == becomes and type(found) is type(becomes)


@pytest.mark.parametrize("data, key, becomes", VALID_FILES, ids=name_of)
def test_a_valid_file_is_taken(mine, data, key, becomes):
    assert read(load_params(mine(data)), key) == becomes


def test_a_profile_extends_one_that_extends_another(tmp_path, mine):
    """The nearest wins, readings are one value, and what is wrong is named where it stands."""
    path = mine(b"extends: under\nphase1: {steps: 9}\nablations: {scored: {b: {score.lr: 0.1}}}\n")
    under = tmp_path / "under.yaml"
    under.write_text("extends: toy\nseed: 3\nphase1: {steps: 8, lr: 0.5}\nablations: {scored: {a: {score.lr: 0.2}}}\n")
    params = load_params(path)
    assert (params.profile, params.seed, params.phase1.steps, params.phase1.lr) == ("mine", 3, 9, 0.5)
    assert params.ablations.scored == {"b": {"score.lr": 0.1}}
    assert params.qformer == load_params("toy").qformer
    under.write_text("extends: mine\n")
    with pytest.raises(ParamsError, match=r"^under\.yaml:1: extends: 'mine' is what this profile is made of"):
        load_params(path)
    under.write_text("seed: 3\nphase1: {lr: -1}\n")
    with pytest.raises(ParamsError, match=r"under\.yaml:2"):
        load_params(path)


def test_what_a_notebook_is_told_to_extend_is_what_its_profile_extends():
    assert load_params({"profile": "ml1m-scored", "extends": "ml1m"}) == load_params("ml1m-scored")
    with pytest.raises(ParamsError, match="profile 'toy' does not extend 'ml1m'"):
        load_params({"profile": "toy", "extends": "ml1m"})


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_profile_of_params_loads_by_all_doors(tmp_path, monkeypatch, path):
    """By name, as a file, as papermill's -f gives it to a notebook, and from what the grid injects."""
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path))
    params = load_params(path.stem)
    assert params == load_params(path) == params.with_()
    assert load_params({"profile": "toy", **yaml.safe_load(path.read_text(encoding="utf-8"))}) == params
    injected = yaml.safe_load(plan.parameters(params, "01_data", {}))
    assert load_params({"__name__": "__main__", **injected}) == params
    assert load_params({"__name__": "__main__", **injected, "seed": 7, "seeds": [7, 8]}).report_seeds == (7, 8)


def test_all_that_is_wrong_is_named_at_once():
    with pytest.raises(ParamsError) as error:
        load_params("toy", **{"phase1.steps": 0, "phase2.lr": "x", "seed": -1})
    assert str(error.value) == "seed: -1 is out of range; give 0 or more. Wrong, too: phase1.steps, phase2.lr"


# ------------------------------------------------------------ embeddings.file


def read_vectors(path):
    return load_cf(path, num_users=3, num_items=5)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("changes, words", [(c, w) for _, c, *w in VECTORS], ids=[name for name, *_ in VECTORS])
def test_vectors_that_are_none_are_refused(tmp_path, changes, words):
    arrays = {name: array for name, array in {**GOOD, **changes}.items() if array is not None}
    np.savez(tmp_path / "v.npz", **arrays)
    refused(lambda: read_vectors(tmp_path / "v.npz"), "v.npz: no usable embeddings", 'Store "user" (U, d)', *words)
    if all(array.dtype.kind in "fib" and array.ndim for array in map(np.asarray, arrays.values())) and arrays:
        save_file(arrays, tmp_path / "v.safetensors")
        refused(lambda: read_vectors(tmp_path / "v.safetensors"), "v.safetensors: no usable embeddings", *words)


@pytest.mark.parametrize("end", ["npz", "safetensors"])
@pytest.mark.parametrize("damage", ["empty", "no archive", "cut", "flipped", "a folder", "not there"])
def test_a_damaged_file_of_vectors_is_refused(tmp_path, end, damage):
    path = tmp_path / f"v.{end}"
    np.savez(path, **GOOD) if end == "npz" else save_file(GOOD, path)
    whole = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "not there":
        flipped = bytes([whole[0] ^ 255]) + whole[1:]
        path.write_bytes({"empty": b"", "no archive": b"no archive", "cut": whole[:-30], "flipped": flipped}[damage])
    refused(lambda: read_vectors(path), f"v.{end}: no usable embeddings", "Store")


def test_some_rows_of_zeros_are_taken_and_counted(tmp_path):
    item = np.ones((5, 2), np.float16)
    item[1:3] = 0
    np.savez(tmp_path / "v.npz", **{**GOOD, "item": item}, ids=np.array([None]))
    with pytest.warns(UserWarning, match=r"v\.npz: 2 of 5 item embeddings are all zero"):
        found = read_vectors(tmp_path / "v.npz")
    assert found.item.dtype == np.float32 and found.item.sum() == 6


def test_a_factorisation_that_comes_to_nothing_names_its_settings():
    train = csr_matrix(np.eye(4, 6))
    refused(
        lambda: fit_cf(train, dim=2, engine="implicit", regularization=1e8), "embeddings.regularization", "all zero"
    )
    refused(lambda: fit_cf(csr_matrix((4, 6)), dim=2, engine="implicit"), "more interactions")
