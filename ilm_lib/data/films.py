"""Films of a MovieLens release with their plots: what an LLM may read of the world beside the films of a study."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ilm_lib.data.openp5 import DataError, read_json_lines, read_lines
from ilm_lib.data.raw import movielens_texts

PLOTS = "overviews.jsonl.gz"  # {"movieId": 1, "overview": "..."} a line


def read_films(folder: Path) -> list[dict]:
    """Records (title, genres, overview) of the films of a release with movies.csv that have a plot in `PLOTS`.

    Raises DataError for a missing file, a malformed line and a plot of a film that movies.csv does not have.
    """
    texts, path, films = movielens_texts(folder), folder / PLOTS, []
    for line, record in read_json_lines(path, read_lines(path)[0]):
        film = texts.get(str(record.get("movieId")))
        if film is None or not isinstance(record.get("overview"), str):
            raise DataError(
                path,
                line,
                "names no film of movies.csv, or has no overview",
                'Write {"movieId": ..., "overview": "..."}',
            )
        # MovieLens 1M and 100K call it Children's.
        genres = ["Children's" if g == "Children" else g for g in film["genres"]]
        films.append({"title": film["title"], "genres": genres, "overview": record["overview"]})
    return films


def other_films(films: Iterable[dict], known: Iterable[dict]) -> list[dict]:
    """The films of which `known` has neither the title (letters and digits, whatever the case) nor the plot."""
    bare = lambda text: re.sub(r"\W", "", text or "").casefold()
    taken = {bare(film.get(field)) for film in known for field in ("title", "overview")} - {""}
    return [f for f in films if bare(f["title"]) not in taken and bare(f["overview"]) not in taken]
