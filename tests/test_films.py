"""Films of a MovieLens release, and which of them a study does not know."""

import gzip
import json

import pytest

from ilm_lib import load_params
from ilm_lib.data import DataError
from ilm_lib.data.films import PLOTS, other_films, read_films
from ilm_lib.study import elm as study_elm
from ilm_lib.study import elm_inputs, inputs
from ilm_lib.study.artifacts import SourceFile


def release(folder, *plots, movies=("1,Heat (1995),Crime|Children", "7,Alien (1979),(no genres listed)")):
    (folder / "movies.csv").write_text("\n".join(("movieId,title,genres", *movies)) + "\n")
    (folder / PLOTS).write_bytes(gzip.compress("\n".join(map(json.dumps, plots)).encode()))
    return folder


def test_films_are_those_with_a_plot(tmp_path):
    release(tmp_path, {"movieId": 7, "overview": "In space.", "source": "x"})
    assert read_films(tmp_path) == [{"title": "Alien (1979)", "genres": [], "overview": "In space."}]


def test_genres_are_named_as_in_the_older_releases(tmp_path):
    release(tmp_path, {"movieId": 1, "overview": "A chase."})
    assert read_films(tmp_path)[0]["genres"] == ["Crime", "Children's"]


@pytest.mark.parametrize("plot", [{"movieId": 2, "overview": "Of no film."}, {"movieId": 1}, {"overview": "A chase."}])
def test_a_plot_of_no_film_is_an_error(tmp_path, plot):
    release(tmp_path, {"movieId": 7, "overview": "In space."}, plot)
    with pytest.raises(DataError, match=rf"{PLOTS}.*2.*movies.csv"):
        read_films(tmp_path)


def test_missing_plots_are_an_error(tmp_path):
    (release(tmp_path) / PLOTS).unlink()
    with pytest.raises(DataError, match=PLOTS):
        read_films(tmp_path)


def test_a_film_is_known_by_its_title_or_its_plot():
    films = [
        {"title": t, "overview": o}
        for t, o in (
            ("Heat (1995)", "New."),
            ("HEAT: (1995)", "New."),
            ("Renamed (1995)", "A  chase!"),
            ("Heat (1986)", "Another."),
        )
    ]
    known = [{"title": "Heat (1995)", "overview": "A chase."}, {"title": "", "overview": None}, {}]
    assert [f["title"] for f in other_films(films, known)] == ["Heat (1986)"]


def test_our_llm_reads_of_other_films_than_the_study_does(tmp_path, monkeypatch):
    monkeypatch.setenv("ILM_DATA_DIR", str(tmp_path))
    names = [f"{i},Film {i} (198{i % 10}),{'Drama' if i % 2 else 'War|Horror'}" for i in range(1, 13)]
    (tmp_path / "world").mkdir()
    release(
        tmp_path / "world",
        *({"movieId": i, "overview": f"The plot of number {i}."} for i in range(1, 13)),
        movies=names,
    )
    params = load_params("toy", **{"elm24.other_films": "world", "elm24.test_fraction": 0.2})
    files = [SourceFile(tmp_path / "world" / name) for name in ("movies.csv", PLOTS)]
    tasks = elm_inputs.tasks_of_others(files, [{"title": "Film 3 (1983)"}, {}], params.elm24.test_fraction, 0)
    assert [f["title"] for f in tasks.films] == [f"Film {i} (198{i % 10})" for i in range(1, 13) if i != 3]
    assert tasks.part("train")["task"].nunique() == 24
    near = tasks.rows[tasks.rows["task"].str.endswith("nn") & (tasks.rows["split"] == "train")]
    assert all(tasks.films[r.item]["genres"] == tasks.films[r.other]["genres"] for r in near.itertuples())

    (tmp_path / "world" / PLOTS).unlink()
    monkeypatch.setattr(inputs, "data", lambda params: None)  # it comes first, and is not what is missing
    with pytest.raises(DataError, match=rf"{PLOTS}.*elm24.other_films"):
        study_elm.backbone(params, 0)
