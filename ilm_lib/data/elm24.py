"""The ELM-24 tasks and a deterministic, offline `template` teacher that answers them from film records.

Task names are those of the paper's table (arXiv 2406.02844, after arXiv 2310.04475). The paper says 24 tasks and
prints 23 rows; "negative review", the plain gap beside the positive and neutral reviews, is our 24th. The prompt
wordings are ours. The teacher composes answers from a film's own genres, decade, plot and tags, so that a student has
to know the film; where the paper used a large language model, this one costs nothing and needs no network. A language
model can be the teacher too (`teachers`): films, splits, neighbours and wordings stay the same.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from ilm_lib.data import elm24_words as words
from ilm_lib.data.instructions import Request, Teacher, article_first, genres, instruct, year

MIN_WORDS = 15
MIN_PLOT = 6  # words; a shorter piece of plot says nothing


@dataclass(frozen=True)
class Task:
    """A task: what it is asked about, and three wordings with `{film}`, and `{other}` where there is a second film."""

    name: str
    inputs: Literal["film", "pair", "neighbour"]
    prompts: tuple[str, ...]


TASKS = tuple(Task(name, inputs, prompts) for name, (inputs, _, prompts, _) in words.TASKS.items())


def build_elm24(
    texts: list[dict],
    item_vectors: np.ndarray,
    *,
    seed: int = 0,
    test_fraction: float = 0.1,
    rows_per_task: int | None = None,
    min_facts: int = 0,
    teacher: Teacher | Literal["template"] = "template",
) -> pd.DataFrame:
    """One row per task and film, with answers by a teacher.

    texts: a record per film, any of the keys title, genres, overview, tags; a missing fact is left unsaid.
    item_vectors: (len(texts), d), rows as in `texts`; their cosine picks the neighbour of the neighbour tasks.
    test_fraction: share of the films, not rows, held out; no test film occurs in a train row in any role.
    rows_per_task: at most so many rows per task and split, by a seeded draw.
    min_facts: films with fewer of genres, tags and plot on record are left out, in every role.
    teacher: "template", or one of `teachers`; nothing but the columns target and teacher depends on it.

    Columns: task, item (row of `texts`), other (row, or -1), prompt (with its literal placeholders), target, teacher
    (its name), split ("train" or "test"). A target never names the titles of its films; a title of one word counts as
    named only with its capital. The template's targets have 15 to 45 words, long descriptions up to 60; those of the
    five-characteristics tasks are five short points between commas. Rows for which a teacher gave no usable text are
    left out, and counted in `attrs["left_out"]`.

    Raises ValueError if the lengths differ, a split would have fewer than two films, or a teacher left a task without
    rows in a split.
    """
    vectors = np.asarray(item_vectors, dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise ValueError(f"item_vectors must be ({len(texts)}, d), got {vectors.shape}")
    order = np.random.default_rng(seed).permutation(len(texts))
    order = order[[facts_on_record(texts[i]) >= min_facts for i in order]]
    num_test = round(test_fraction * len(order))
    splits = {"train": np.sort(order[num_test:]), "test": np.sort(order[:num_test])}
    if min(map(len, splits.values())) < 2:
        raise ValueError(f"each split needs two films: {len(order)} films, test_fraction {test_fraction}")

    template = isinstance(teacher, str)
    if template and teacher != "template":
        raise ValueError(f'teacher {teacher!r} is unknown; give "template" or a teacher of ilm_lib.data.teachers')
    facts = [read_facts(record) for record in texts]
    rows, requests = [], []
    for split, members in splits.items():
        # Neighbours are sought within the split: a neighbour across it would put a test film in a train row.
        nearest = nearest_neighbours(vectors, members)
        for task in TASKS:
            chosen = members
            if rows_per_task is not None and rows_per_task < len(members):
                draw = row_rng(seed, task.name, len(texts) + (split == "test"))
                chosen = np.sort(draw.choice(members, rows_per_task, replace=False))
            for item in map(int, chosen):
                rng = row_rng(seed, task.name, item)
                other = -1
                if task.inputs == "neighbour":
                    other = nearest[item]
                elif task.inputs == "pair":
                    other = int(rng.choice(members[members != item]))
                prompt = task.prompts[rng.integers(len(task.prompts))]
                if template:
                    target = answer(task, facts[item], facts[other] if other >= 0 else None, rng)
                else:
                    target = None
                    written = instruct(task.name, prompt, texts[item], texts[other] if other >= 0 else None)
                    requests.append(Request(task.name, written))
                rows.append((task.name, item, other, prompt, target, teacher if template else teacher.name, split))
    table = pd.DataFrame(rows, columns=["task", "item", "other", "prompt", "target", "teacher", "split"])
    return table if template else with_targets(table, teacher.write(requests), facts)


def with_targets(table: pd.DataFrame, targets: Sequence[str | None], facts: Sequence["Facts"]) -> pd.DataFrame:
    """The rows with a teacher's texts, titles taken out; rows without a text are left out and counted."""
    table["target"] = [
        text and unnamed(text, [facts[i] for i in (row.item, row.other) if i >= 0])
        for text, row in zip(targets, table.itertuples(), strict=True)
    ]
    kept = table.dropna(subset="target").reset_index(drop=True)
    for (task, split), part in table.groupby(["task", "split"], sort=False):
        if part["target"].isna().all():
            raise ValueError(
                f"{part['teacher'].iloc[0]} gave no usable text for {task!r}, {split}: {len(part)} rows. "
                "Ask it one of the prompts by hand (a dry run prints them), or choose another teacher"
            )
    kept.attrs["left_out"] = len(table) - len(kept)
    return kept


def row_rng(seed: int, task: str, item: int) -> np.random.Generator:
    """A stream of its own for each row, so that a row does not depend on which others are built."""
    return np.random.default_rng([seed, zlib.crc32(task.encode()), item])


def nearest_neighbours(vectors: np.ndarray, members: np.ndarray, chunk: int = 1024) -> dict[int, int]:
    """The row of highest cosine for each of `members` among the other members."""
    unit = vectors[members]
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    nearest = {}
    for start in range(0, len(members), chunk):  # the whole matrix would not fit for a large catalogue
        cosine = unit[start : start + chunk] @ unit.T
        row = np.arange(len(cosine))
        cosine[row, start + row] = -np.inf
        nearest.update(zip(members[start + row].tolist(), members[cosine.argmax(1)].tolist()))
    return nearest


# ---- facts of a film ----


@dataclass(frozen=True)
class Facts:
    titles: tuple[str, ...]  # the forms a text may use: "Matrix, The (1999)" is also "The Matrix"
    genres: tuple[str, ...]  # lower case, at most three
    decade: str  # "1990s", or "" if the title has no year
    sentences: tuple[str, ...]
    keys: tuple[str, ...]  # noun phrases of the plot, with their article
    tags: tuple[str, ...]


FUNCTION_WORDS = (
    "a an the and or but nor so yet of in on at to for from by with into onto over under as that which who whose whom "
    "when while where after before until because if than is are was were be his her their its he she it they this "
    "these those named called during through between against about above below beyond only must has have had not"
).split()
SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\b[A-Z]\.)\s+")
# A verb looks like a noun to a regular expression, so take a phrase only where its end is certain: an object of a
# preposition up to the next function word or mark, or a phrase before "who" or "named".
NOUNS = r"(?:a|an|the|his|her|their|its) [\w'-]+(?: [\w'-]+){0,2}?"
STOP = "|".join(FUNCTION_WORDS)
OBJECT = re.compile(
    rf"\b(?:of|in|on|at|to|for|from|by|with|into|aboard|against|about|among|beneath|behind) ({NOUNS})"
    rf"(?=[,.;:!?]|$| (?:{STOP})\b)"
)
SUBJECT = re.compile(rf"\b({NOUNS}) (?:who|whose|named|called)\b", re.IGNORECASE)


def facts_on_record(record: dict) -> int:
    """How many of genres, tags and plot a film's record has."""
    return sum(bool(record.get(field)) for field in ("genres", "tags", "overview"))


def read_facts(record: dict) -> Facts:
    title = (record.get("title") or "").strip()
    name = re.sub(r"\s*\(.*\)\s*$", "", title)  # the year, and any "(a.k.a. ...)" before it
    overview = " ".join((record.get("overview") or "").split())
    keys = [k[0].lower() + k[1:] for k in SUBJECT.findall(overview) + OBJECT.findall(overview)]
    keys = [k for k in keys if not set(k.split()[1:]) & set(FUNCTION_WORDS)]
    return Facts(
        titles=tuple(dict.fromkeys(t for t in (title, name, article_first(name)) if t)),
        genres=tuple(dict.fromkeys(g.lower() for g in genres(record)))[:3],
        decade=f"{year(record)[:3]}0s" if year(record) else "",
        sentences=tuple(s for s in SENTENCE_END.split(overview) if s),
        keys=tuple(dict.fromkeys(keys)),
        tags=tuple(dict.fromkeys(t.replace("-", " ") for t in record.get("tags") or [] if t)),
    )


# ---- the teacher ----


def answer(task: Task, film: Facts, other: Facts | None, rng: np.random.Generator) -> str:
    """The template teacher's answer; `other` is given for pair and neighbour tasks."""
    _, longest, _, frames = words.TASKS[task.name]
    if task.name in ("five pos char.", "five neg char."):
        text = five_points(film, rng, positive=task.name == "five pos char.")
    else:
        slots = phrases(film, rng)
        if other is not None:
            slots |= {f"o_{name}": phrase for name, phrase in phrases(other, rng).items()}
            slots["shared"] = shared(film, other)
        frame = str(rng.choice(frames))
        bare = frame.format(**slots, plot="", o_plot="")
        source = other if "{o_plot}" in frame else film
        # A summary starts at the beginning; elsewhere the sentence quoted varies from task to task.
        first = 0 if task.name in ("summary", "long description") else rng.integers(max(len(source.sentences), 1))
        quoted = plot(source, first, longest - len(bare.split()))
        text = " ".join(frame.format(**slots, plot=quoted, o_plot=quoted).split())
        if len(text.split()) < MIN_WORDS:
            text += f" It offers {slots['praise']} and should please {slots['viewer']}."
    return unnamed(text, [f for f in (film, other) if f])


def unnamed(text: str, films: Sequence[Facts]) -> str:
    """The text with "the film" in place of titles, and a capital at its start."""
    for title in sorted((t for film in films for t in film.titles), key=len, reverse=True):
        flags = re.IGNORECASE if " " in title else 0  # "Heat" is a title, "heat" a word
        text = re.sub(rf"(?<!\w){re.escape(title)}(?!\w)", "the film", text, flags=flags)
    text = re.sub(r"(?<=[.!?] )the film", "The film", text)
    return text[0].upper() + text[1:]


def phrases(film: Facts, rng: np.random.Generator) -> dict[str, str]:
    """What a frame can say of one film; each draw may pick another of its facts."""
    pick = lambda options, default: str(rng.choice(options)) if options else default
    genre = pick(film.genres, "")
    praise, flaw, viewer = words.GENRES.get(genre, words.ANY_GENRE)
    kind = " ".join(filter(None, (film.decade, listing(film.genres), "film")))
    tag = pick(film.tags, "")
    return {
        "kind": kind,
        "a_kind": ("an " if kind[0] in "aeiou" else "a ") + kind,
        "genres": listing(film.genres) or "unclassified",
        "genre": genre or "unclassified",
        "era": f"the {film.decade}" if film.decade else "its day",
        "key": pick(film.keys, "its central story"),
        "tag": f'a "{tag}" flavour' if tag else "a style of its own",
        "praise": praise,
        "flaw": flaw,
        "viewer": viewer,
    }


def listing(names: tuple[str, ...]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def plot(film: Facts, first: int, budget: int) -> str:
    """Sentences from number `first` on, whole while they fit in `budget` words; a first one too long is cut."""
    if budget < MIN_PLOT:
        return ""
    if not film.sentences:
        return "Little is on record about its plot."
    taken: list[str] = []
    for sentence in film.sentences[first:]:
        left = budget - sum(len(s.split()) for s in taken)
        if len(sentence.split()) > left:
            return " ".join(taken) or cut(sentence, left)
        taken.append(sentence)
    return " ".join(taken)


def cut(sentence: str, budget: int) -> str:
    """The first `budget` words at most, ending at a comma if one is near, never on a function word."""
    kept = sentence.split()[:budget]
    commas = [i + 1 for i, word in enumerate(kept) if word[-1] in ",;:" and i + 1 >= max(MIN_PLOT, budget // 2)]
    kept = kept[: commas[-1]] if commas else kept
    while len(kept) > 1 and kept[-1].lower() in FUNCTION_WORDS:
        kept.pop()
    return " ".join(kept).rstrip(",;:.!?-") + "."


def five_points(film: Facts, rng: np.random.Generator, *, positive: bool) -> str:
    """Three points from the film's facts where it has them, then its genres', then common ones; no comma inside."""
    side = 0 if positive else 1
    tag, key, genre = (str(rng.choice(o)).replace(",", "") if o else "" for o in (film.tags, film.keys, film.genres))
    special = [
        f'a {"welcome" if positive else "forced"} "{tag}" flavour' if tag else "",
        f"{'strong' if positive else 'poor'} use of {key}" if key else "",
        " ".join(filter(None, ("true" if positive else "tired", film.decade, genre, "style"))) if genre else "",
    ]
    fitting = [words.GENRES.get(g, words.ANY_GENRE)[side] for g in film.genres]
    common = rng.permutation(words.POSITIVE if positive else words.NEGATIVE).tolist()
    points = list(dict.fromkeys([p for p in special if p] + fitting + common))[:5]
    return ", ".join(rng.permutation(points).tolist()) + "."


def shared(film: Facts, other: Facts) -> str:
    """A sentence on what two films' records have in common, or that they have no genre in common."""
    genres = tuple(g for g in film.genres if g in other.genres)
    when = f" from the {film.decade}" if film.decade and film.decade == other.decade else ""
    tags = [t for t in film.tags if t in other.tags]
    which = f' marked "{tags[0]}"' if tags else ""
    if genres or when or which:
        return f"Both are {listing(genres)} films{which}{when}.".replace("  ", " ")
    if film.genres and other.genres:
        return f"One is {listing(film.genres)}, the other {listing(other.genres)}."
    return "Little on record links the two."
