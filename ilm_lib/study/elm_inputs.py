"""The rows of the ELM-24 tasks: composed by rule, written by a language model, or one's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ilm_lib.data import data_dir
from ilm_lib.data.elm24 import build_elm24
from ilm_lib.data.elm24_file import load_elm
from ilm_lib.data.films import other_films, read_films
from ilm_lib.data.instructions import Teacher
from ilm_lib.data.teacher_hf import HFTeacher
from ilm_lib.data.teacher_openai import OpenAITeacher
from ilm_lib.profiles import runs_dir
from ilm_lib.settings import Params
from ilm_lib.study import inputs
from ilm_lib.study.artifacts import Artifact, SourceFile, stage
from ilm_lib.tasks.elm import ElmTasks

NOTEBOOK = "05_elm24_eval"


def data(params: Params, seed: int, *, build: bool = False) -> Artifact:
    """The 24 tasks over the films that have a text, or rows of one's own; films are split, not rows."""
    e, given = params.elm24, {"data": inputs.data(params), "test_fraction": params.elm24.test_fraction}
    if e.file:
        remedy = "Set elm24.file to your rows, relative to ILM_DATA_DIR"
        given |= {"file": SourceFile(data_dir() / e.file, remedy)}
        return stage("elm_data", make_given_rows, params.profile, made_by=NOTEBOOK, build=build, given=given)
    # The embeddings pick the neighbours.
    given |= {"cf": inputs.embeddings(params, seed, build=build), "min_facts": e.min_facts}
    if e.teacher == "template":
        return stage("elm_data", make_rows, params.profile, made_by=NOTEBOOK, build=build, given=given)
    given |= {"asked": TeacherSettings.of_profile(params)}
    return stage("elm_data", make_taught_rows, params.profile, made_by=NOTEBOOK, build=build, given=given)


def make_rows(folder: Path, *, data: Artifact, cf: Artifact, test_fraction: float, min_facts: int) -> None:
    """Rows whose targets are composed by rule from the films' own facts."""
    _save_rows(folder, build_rows(data, cf, "template", test_fraction, min_facts))


def make_taught_rows(
    folder: Path, *, data: Artifact, cf: Artifact, test_fraction: float, min_facts: int, asked: TeacherSettings
) -> None:
    """Rows whose targets a language model writes."""
    _save_rows(folder, build_rows(data, cf, asked.teacher(), test_fraction, min_facts))


def make_given_rows(folder: Path, *, data: Artifact, file: SourceFile, test_fraction: float) -> None:
    """Rows from a file of one's own."""
    films = len(inputs.open_dataset(data).texts)
    _save_rows(folder, load_elm(file.path, films, test_fraction, seed=0))


def _save_rows(folder: Path, rows: pd.DataFrame) -> None:
    if left_out := rows.attrs.get("left_out"):
        print(f"{left_out:,} of {left_out + len(rows):,} rows left out")
    rows.to_parquet(folder / "rows.parquet")


def build_rows(
    data: Artifact, cf: Artifact, teacher: Teacher | str, test_fraction: float, min_facts: int
) -> pd.DataFrame:
    """The rows of the 24 tasks over the films of a dataset, by a teacher."""
    items, films = inputs.cf_embeddings(cf).item, inputs.open_dataset(data).texts
    return build_elm24(films, items, seed=0, test_fraction=test_fraction, min_facts=min_facts, teacher=teacher)


@dataclass(frozen=True)
class TeacherSettings:
    """A language model that writes target texts.

    Attributes:
        kind: "hf" or "openai".
        model: its name.
        url: where an "openai" server answers.
        key_env: the variable that holds its key.
        answers: file of its answers, which outlives the stage, so that a rebuild asks nothing twice.
    """

    kind: str
    model: str
    url: str | None
    key_env: str | None
    answers: Path

    @classmethod
    def of_profile(cls, params: Params) -> TeacherSettings:
        e, model = params.elm24, str(params.elm24.teacher_model)
        name = re.sub(r"[^\w.-]+", "-", f"{e.teacher}-{Path(model).name}") + ".jsonl"
        return cls(e.teacher, model, e.teacher_url, e.teacher_key_env, runs_dir() / params.profile / "teacher" / name)

    def identity(self) -> dict[str, str]:
        """Which model answers matters to what it writes, and not where."""
        return {"teacher": self.kind, "model": self.model}

    def teacher(self) -> Teacher:
        if self.kind == "hf":
            return HFTeacher(self.model, self.answers)
        return OpenAITeacher(self.url, self.model, self.answers, key_env=self.key_env)


def load_rows(artifact: Artifact) -> pd.DataFrame:
    return pd.read_parquet(artifact.path("rows.parquet"))


def tasks_of(data: Artifact, rows: Artifact) -> ElmTasks:
    """The tasks of an `elm_data` artifact over the films of a `data` artifact."""
    return ElmTasks(load_rows(rows), inputs.open_dataset(data).texts)


def load_tasks(params: Params, seed: int) -> ElmTasks:
    """The tasks of a profile."""
    return tasks_of(inputs.data(params), data(params, seed))


def tasks_of_others(films: list[SourceFile], known: Sequence[dict], test_fraction: float, min_facts: int) -> ElmTasks:
    """The 24 tasks over the films of a release that are none of the study's.

    Where an LLM knows a film by heart, its tokens need only name the film, and nothing of it carries over to others.

    Args:
        films: movies.csv and the file of plots, in one folder.
        known: the study's films.
    """
    others = other_films(read_films(films[0].path.parent), known)
    # Nobody here has watched them, so films of like genres are neighbours; chance decides among equals.
    genres = pd.DataFrame([dict.fromkeys(film["genres"], 1.0) for film in others]).fillna(0.0).to_numpy()
    vectors = genres + np.random.default_rng(0).normal(0, 0.1, genres.shape)
    rows = build_elm24(others, vectors, seed=0, test_fraction=test_fraction, min_facts=min_facts)
    return ElmTasks(rows, others)
