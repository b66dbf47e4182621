"""Films of a MovieLens release with their plots: what an LLM may read of the world beside the films of a study."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ilm_lib.data.lines import DataError, read_json_lines, read_lines
from ilm_lib.data.raw import movielens_texts
from ilm_lib.data.records import clean_record

PLOTS = "overviews.jsonl.gz"  # {"movieId": 1, "overview": "..."} a line


def read_films(folder: Path) -> list[dict]:
    """Records (title, genres, overview) of the films of a release with movies.csv that have a plot in `PLOTS`.

    Raises DataError for a missing file, a malformed line, a film without title, and a plot that is blank, a film's
    second, or of a film that movies.csv does not have.
    """
    texts, path, films = movielens_texts(folder), folder / PLOTS, []
    first: dict[str, int] = {}  # film -> the line of its plot
    for line, record in read_json_lines(path, read_lines(path)[0]):
        movie = str(record.get("movieId"))
        film, plot = texts.get(movie), clean_record(path, line, record, Counter()).get("overview")
        if film is None or plot is None:
            wrong = "names no film of movies.csv, or has no overview"
            raise DataError(path, line, wrong, 'Write {"movieId": ..., "overview": "..."}')
        if first.setdefault(movie, line) != line:
            wrong = f"is a second plot of film {movie}, after that of line {first[movie]}"
            raise DataError(path, line, wrong, "Keep one of them")
        if "title" not in film:
            raise DataError(folder / "movies.csv", None, f"film {movie} has no title", "Write its title")
        # MovieLens 1M and 100K call it Children's.
        genres = ["Children's" if g == "Children" else g for g in film["genres"]]
        films.append({"title": film["title"], "genres": genres, "overview": plot})
    return films


def other_films(films: Iterable[dict], known: Iterable[dict]) -> list[dict]:
    """The films of which `known` has neither the title (letters and digits, whatever the case) nor the plot."""
    bare = lambda text: re.sub(r"\W", "", text or "").casefold()
    taken = {bare(film.get(field)) for film in known for field in ("title", "overview")} - {""}
    return [f for f in films if bare(f["title"]) not in taken and bare(f["overview"]) not in taken]
