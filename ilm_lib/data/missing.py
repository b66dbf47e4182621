"""What a profile reads that is not there yet, and the command that makes it."""

from __future__ import annotations

from pathlib import Path

from ilm_lib import profiles
from ilm_lib.data.conversations import NAME as REDIAL
from ilm_lib.data.conversations import SOURCES, TEST, TO_MOVIELENS, VALID
from ilm_lib.data.lines import DataError
from ilm_lib.data.records import read_texts
from ilm_lib.data.templates import SOURCE_FIELDS, load_templates
from ilm_lib.data.time_order import NO_TIMES, TIMES
from ilm_lib.settings import Params, Wording


def missing_data(params: Params) -> str | None:
    """What the data of a profile lack, a line each with the command or the setting that helps; None if all is there.

    Asked before a study starts, so that it stops at once and not in a notebook's traceback.
    """
    root = profiles.data_dir()
    found = [*_dataset(params, root), *_elm24(params, root), *_llm(params), *_dialogues(params, root)]
    if (file := params.embeddings.file) and not Path(file).is_file():
        found.append(f"{file} is missing: put your vectors there or leave out embeddings.file")
    return "\n".join(found) or None


def command(arguments: str) -> str:
    """`python -m ilm_lib.data` with arguments, by the environment of the study where there is one."""
    python = ".venv/bin/python" if (profiles.ROOT / ".venv/bin/python").exists() else "python"
    return f"`{python} -m ilm_lib.data {arguments}`"


def _llm(params: Params) -> list[str]:
    if params.backbone.pretrained is None:
        return []
    from ilm_lib.data.llms import find_llm  # with transformers

    try:
        find_llm(params.backbone.pretrained)
    except DataError as error:
        return [str(error)]
    return []


def _dialogues(params: Params, root: Path) -> list[str]:
    if not params.chat.enabled or params.chat.recorded is None:
        return []
    gone = [str(root / file) for file in (VALID, TEST, TO_MOVIELENS) if not (root / file).is_file()]
    of_films = params.data.folder and not (root / params.data.folder).is_dir()  # that line names the sources as well
    how = f"{'is' if len(gone) == 1 else 'are'} missing: {SOURCES}; or leave out chat.recorded"
    return [f"{', '.join(gone)} {how}"] if gone and not of_films else []


def _dataset(params: Params, root: Path) -> list[str]:
    from ilm_lib.data.download import DATASETS, PROMPT_FILE

    found, d, brings_prompts = [], params.data, False
    if d.source == "openp5" and not (root / d.folder / "user_sequence.txt").is_file():
        place, _, name = d.folder.rpartition("/")
        if place == "openp5" and name in DATASETS:
            how, brings_prompts = f"{command(name)} downloads the raw files and makes it", True
        elif place == "openp5" and name == REDIAL:
            how = f"{command(name)} makes it; {SOURCES}"
        elif place == "openp5":
            how = f"{command(f'--csv interactions.csv --texts texts.jsonl {name}')} makes it from files of your own"
        else:
            how = "put a dataset in OpenP5's form there, or change data.folder"
        found.append(f"{root / d.folder} is missing: {how}")
    elif d.split == "temporal" and not (root / d.folder / TIMES).is_file():
        found.append(f"{root / d.folder / TIMES} is missing: {NO_TIMES}; or leave out data.split")
    if d.templates and not (root / d.templates).is_file():
        if d.templates != f"openp5/{PROMPT_FILE}":
            found.append(
                f"{root / d.templates} is missing: put it there, or leave out data.templates to use our prompts"
            )
        elif not brings_prompts:
            how = f"{command('prompts')} downloads OpenP5's prompts; or leave out data.templates to use ours"
            found.append(f"{root / d.templates} is missing: {how}")
    elif d.templates:
        found += _templates(root / d.templates, params.evaluation.prompts)
    return found


def _templates(path: Path, asked: tuple[Wording, ...]) -> list[str]:
    """What is wrong with the templates of a file, or which of those that are asked for it has not."""
    try:
        kinds = {(t.task, t.wording) for t in load_templates(path)}
    except DataError as error:
        return [str(error)]
    lacking = [f"{wording} {task}" for task in SOURCE_FIELDS for wording in asked if (task, wording) not in kinds]
    remedy = "write one, or leave the wording out of evaluation.prompts"
    return [f"{path} has no {lacking[0]} template: {remedy}"] if lacking else []


def _elm24(params: Params, root: Path) -> list[str]:
    from ilm_lib.data.enough import LEAST
    from ilm_lib.data.films import PLOTS

    e = params.elm24
    if not e.enabled:
        return []
    if e.file:
        remedy = "put your rows there or leave out elm24.file"
        return [] if (root / e.file).is_file() else [f"{root / e.file} is missing: {remedy}"]
    found = []
    if e.other_films:
        gone = [f for f in ("movies.csv", PLOTS) if not (root / e.other_films / f).is_file()]
        if gone:
            where = "movies.csv is in ml-latest-small.zip of GroupLens" if "movies.csv" in gone else ""
            plots = f'{PLOTS} holds {{"movieId": 1, "overview": "..."}} a line, and nobody offers it whole'
            how = "; ".join(filter(None, (where, plots if PLOTS in gone else "")))
            found.append(
                f"{root / e.other_films} lacks {' and '.join(gone)}: {how}; "
                "or leave out elm24.other_films, and the LLM learns to read on the training films"
            )
    films = _told_films(params, root)
    if films is not None and films < LEAST:
        found.append(
            f"{root / params.data.folder}: {films} items have {e.min_facts} of genres, tags and overview, as "
            f"elm24.min_facts asks, {LEAST} are needed: add them with --texts, or set elm24.enabled: false"
        )
    return found


def _told_films(params: Params, root: Path) -> int | None:
    """Items with as many facts as the ELM tasks ask for; None where that cannot be said or nothing is asked."""
    from ilm_lib.data.elm24 import facts_on_record

    least = params.elm24.min_facts
    if params.data.source == "toy" or not least:
        return None
    folder = root / params.data.folder
    if not (folder / "user_sequence.txt").is_file():
        return None  # said already
    path = next((p for end in ("", ".gz") if (p := folder / f"item_text.jsonl{end}").exists()), None)
    if path is None:
        return 0
    try:
        records = read_texts(path)[0].values()
    except DataError:
        return None  # the data stage says what is wrong
    return sum(facts_on_record(record) >= least for record in records)
