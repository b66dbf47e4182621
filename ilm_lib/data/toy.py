"""A seeded toy film world, in the files that real OpenP5 data has.

Every film has latent traits (genres, mood, era, hidden dimensions, motif) that drive both its text and who watches it.
The planted signals are separable by what can see them:

    genres, mood, era   in the texts and in viewing
    hidden dimensions   in viewing only: no word depends on them
    motif               in the texts; in viewing each viewer is fond of one of 40, too fine for a low-rank model
    people, companions  in the texts only
    order               a viewer's state is pulled to what was just watched, and a sequel follows its first part

Because the generator knows its own law of choice, it also writes the oracle that no model can beat on average.
"""

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ilm_lib.data import toy_words as words

MIN_ITEMS, MIN_LENGTH, MAX_LENGTH = 80, 6, 40
HIDDEN_DIMS = 3
GENRES, MOODS = tuple(words.GENRES), tuple(words.MOODS)

# Strengths in nats of log-preference, tuned once at the default sizes, seeds 0 to 2, by leave-one-out HR@10: oracle
# about .59, iALS (32 factors) .26, last-item transition counts .23, popularity .10. The tests hold the ordering.
POPULARITY, POPULARITY_OFFSET = 0.85, 8.0
TASTE = {"genre": 0.6, "mood": 0.4, "era": 0.4, "hidden": 1.6}
PULL = {"genre": 1.4, "mood": 1.0, "era": 0.4, "hidden": 1.3}
MOTIF, SEQUEL = 3.8, 4.0
STATE_MEMORY, STATE_DRIFT = 0.4, 0.25


@dataclass(frozen=True)
class Films:
    """Latent traits of n films. `parent[i]` is the film that i is a sequel of, or -1."""

    genre: np.ndarray  # (n, 2) int, genre indices; the second is -1 where a film has one genre
    mood: np.ndarray  # (n,) int
    year: np.ndarray  # (n,) int
    motif: np.ndarray  # (n,) int
    hidden: np.ndarray  # (n, HIDDEN_DIMS) float
    popularity: np.ndarray  # (n,) float, log scale
    parent: np.ndarray  # (n,) int


def make_toy_world(folder: Path, *, num_items: int = 300, num_users: int = 1000, seed: int = 0) -> None:
    """Write a toy film world into `folder` (made if missing); equal arguments give equal bytes.

    Files, as OpenP5 lays them out (arXiv 2306.07134), plus texts and the oracle:
      user_sequence.txt         `user_id item_id item_id ...` in time order, 6 to 40 distinct items, about 20 on average
      user_indexing.txt         `user_id k`, k from 1 in file order
      item_random_indexing.txt  `item_id k`, k from 1001 over a random permutation
      item_text.jsonl.gz        an object a line: id, title "Name (year)", genres, overview, tags
      oracle.npz                `scores` float32 (num_users, num_items), `item_ids` str (num_items,)
    Rows of `scores` follow user_sequence.txt, columns item_text.jsonl.gz. A score is the generator's log-preference
    (nats, up to a constant per row) when the user's last item was chosen; the law of that choice is their softmax over
    the items the user had not watched.

    Raises ValueError for num_items < 80 or num_users < 1.
    """
    if num_items < MIN_ITEMS or num_users < 1:
        raise ValueError(f"need num_items >= {MIN_ITEMS} and num_users >= 1, got {num_items} and {num_users}")
    # Separate streams: a change to the wording must not change who watches what.
    rng_films, rng_texts, rng_views, rng_ids = np.random.default_rng(seed).spawn(4)
    films = draw_films(rng_films, num_items)
    sequences, scores = draw_views(rng_views, films, num_users)
    item_ids = draw_ids(rng_ids, num_items)
    user_ids = draw_ids(rng_ids, num_users)

    folder.mkdir(parents=True, exist_ok=True)
    write_lines(
        folder / "user_sequence.txt",
        (" ".join([user, *(item_ids[i] for i in seq)]) for user, seq in zip(user_ids, sequences)),
    )
    write_lines(folder / "user_indexing.txt", (f"{user} {k}" for k, user in enumerate(user_ids, 1)))
    order = rng_ids.permutation(num_items)
    write_lines(folder / "item_random_indexing.txt", (f"{item_ids[i]} {k}" for k, i in enumerate(order, 1001)))
    records = ({"id": i, **text} for i, text in zip(item_ids, draw_texts(rng_texts, films)))
    body = "".join(json.dumps(record) + "\n" for record in records).encode()
    (folder / "item_text.jsonl.gz").write_bytes(gzip.compress(body, mtime=0))
    np.savez(folder / "oracle.npz", scores=scores.astype(np.float32), item_ids=np.array(item_ids))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_bytes("".join(line + "\n" for line in lines).encode())


def draw_ids(rng: np.random.Generator, count: int) -> list[str]:
    """Rising ids with gaps, as in MovieLens, so that an id mistaken for a row shows up as an error."""
    return [str(i + 1) for i in np.sort(rng.choice(count * 4 // 3, size=count, replace=False))]


def draw_films(rng: np.random.Generator, n: int) -> Films:
    genre = np.stack([rng.permutation(len(GENRES))[:2] for _ in range(n)])
    genre[rng.random(n) < 0.4, 1] = -1
    mood = rng.integers(len(MOODS), size=n)
    year = rng.integers(1935, 2000, size=n)
    motif = rng.permutation(np.arange(n) % len(words.MOTIFS))
    hidden = rng.standard_normal((n, HIDDEN_DIMS))
    popularity = -POPULARITY * np.log(rng.permutation(n) + POPULARITY_OFFSET)

    parent = np.full(n, -1)
    pairs = rng.permutation(n)[: 2 * (n // 20)].reshape(-1, 2)
    for first, second in pairs:
        parent[second] = first
        genre[second], mood[second], motif[second] = genre[first], mood[first], motif[first]
        year[second] = year[first] + rng.integers(1, 6)
        hidden[second] = hidden[first] + 0.3 * rng.standard_normal(HIDDEN_DIMS)
    # Of one length: a film far out would be many viewers' extreme favourite, a second popularity.
    hidden *= np.sqrt(HIDDEN_DIMS) / np.linalg.norm(hidden, axis=1, keepdims=True)
    return Films(genre, mood, year, motif, hidden, popularity, parent)


def trait_blocks(films: Films) -> dict[str, np.ndarray]:
    """Traits as centred columns, a block (n, d) each, of order one."""
    n = len(films.mood)
    genre = np.zeros((n, len(GENRES)))
    for column in films.genre.T:
        has = column >= 0
        genre[np.flatnonzero(has), column[has]] = 1.0
    genre /= np.sqrt(genre.sum(1, keepdims=True))
    mood = np.eye(len(MOODS))[films.mood]
    era = (films.year[:, None] - 1967) / 20
    blocks = {"genre": genre, "mood": mood, "era": era, "hidden": films.hidden}
    return {name: block - block.mean(0) for name, block in blocks.items()}


def draw_views(rng: np.random.Generator, films: Films, num_users: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Sequences of film rows, and the score matrix (num_users, n) at each user's last step."""
    blocks = trait_blocks(films)
    traits = np.hstack(list(blocks.values()))
    scale = {
        name: np.concatenate([np.full(block.shape[1], strength[name]) for name, block in blocks.items()])
        for name, strength in (("taste", TASTE), ("pull", PULL))
    }
    # What a film pulls the viewer towards. The hidden block is rolled, so that A then B is not B then A.
    target = np.hstack([np.roll(b, 1, axis=1) if name == "hidden" else b for name, b in blocks.items()])

    taste = rng.standard_normal((num_users, traits.shape[1])) * scale["taste"]
    motif = rng.integers(len(words.MOTIFS), size=num_users)
    lasting = films.popularity + taste @ traits.T + MOTIF * (films.motif == motif[:, None])
    lengths = np.clip(np.round(rng.gamma(5.0, 4.0, size=num_users)).astype(int), MIN_LENGTH, MAX_LENGTH)

    state = rng.standard_normal(taste.shape) * STATE_DRIFT
    watched = np.zeros(lasting.shape, dtype=bool)
    views = np.empty((num_users, MAX_LENGTH), dtype=int)
    final = np.empty_like(lasting)
    users = np.arange(num_users)
    for step in range(lengths.max()):
        scores = lasting + (state * scale["pull"]) @ traits.T
        if step:
            scores += SEQUEL * (films.parent == views[:, step - 1, None])
        last = lengths == step + 1
        final[last] = scores[last]
        # The Gumbel-max trick: the argmax is a draw from the softmax over what is not watched yet.
        noisy = np.where(watched, -np.inf, scores + rng.gumbel(size=scores.shape))
        chosen = noisy.argmax(1)
        views[:, step] = chosen
        watched[users, chosen] = True
        drift = STATE_DRIFT * rng.standard_normal(state.shape)
        state = STATE_MEMORY * state + (1 - STATE_MEMORY) * target[chosen] + drift
    return [row[:length] for row, length in zip(views, lengths)], final


def draw_texts(rng: np.random.Generator, films: Films) -> list[dict]:
    """Title, genres, overview and tags of each film. No word depends on `hidden` or `popularity`."""
    pick = lambda options: options[rng.integers(len(options))]
    names = draw_names(rng, films)
    texts = []
    for i, name in enumerate(names):
        genres = [GENRES[g] for g in films.genre[i] if g >= 0]
        adjectives, images, mood_tags = words.MOODS[MOODS[films.mood[i]]]
        motif_tag, *places = words.MOTIFS[films.motif[i]]
        tags = [pick(mood_tags)] if rng.random() < 0.6 else []
        tags += [motif_tag] if rng.random() < 0.5 else []
        tags += [pick(words.PRODUCTION_TAGS)] if rng.random() < 0.5 else []
        texts.append(
            {
                "title": f"{name} ({films.year[i]})",
                "genres": genres,
                "overview": overview(rng, genres, pick(places), pick(adjectives), pick(images)),
                "tags": tags,
            }
        )
    return texts


def mood(record: dict) -> str:
    """The mood that a tag of the film tells, or ""."""
    return next((name for name, (_, _, tags) in words.MOODS.items() if {*tags} & {*record.get("tags", [])}), "")


def overview(rng: np.random.Generator, genres: list[str], place: str, adjective: str, image: str) -> str:
    """Two to four sentences; each plot phrase comes from one of the film's genres."""
    pick = lambda options: options[rng.integers(len(options))]
    plot = lambda kind: pick(words.GENRES[pick(genres)][kind])
    role, name, companion = with_article(plot("roles")), pick(words.NAMES), pick(words.COMPANIONS)
    slots = {
        "role": role,
        "Role": role[0].upper() + role[1:],
        "name": name,
        "place": place,
        "goal": plot("goals"),
        "event": plot("events"),
        "secret": plot("secrets"),
        "companion": companion,
        "the_companion": "the " + companion.split(" ", 1)[1],
        "adj": adjective,
        "adj_a": with_article(adjective),
        "image": image,
    }
    frames = pick(words.SETUPS).split("|")
    frames.append(pick(words.CONFLICTS))
    if len(frames) == 2 and rng.random() < 0.6:
        frames.append(pick(words.TURNS))
    if rng.random() < 0.7:
        frames.append(pick(words.CLOSINGS))
    return " ".join(frame.format(**slots) for frame in frames)


def draw_names(rng: np.random.Generator, films: Films) -> list[str]:
    """Distinct titles without the year; a sequel is its first part's title and "II"."""
    pick = lambda options: options[rng.integers(len(options))]
    names: list[str] = []
    for i in range(len(films.mood)):
        while True:  # some thousands of titles are possible, so a repeat is redrawn, never numbered
            hint = words.GENRE_NOUNS[GENRES[films.genre[i, 0]]]
            noun = hint if rng.random() < 0.2 else pick(words.TITLE_NOUNS)
            form = pick(("The {a} {n}", "{a} {n}", "{n} of the {a} {m}", "{p} and the {a} {n}", "The {n} and the {m}"))
            name = form.format(a=pick(words.TITLE_ADJECTIVES), n=noun, m=pick(words.TITLE_NOUNS), p=pick(words.NAMES))
            if name not in names:
                names.append(name)
                break
    return [name if first < 0 else f"{names[first]} II" for name, first in zip(names, films.parent)]


def with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase
