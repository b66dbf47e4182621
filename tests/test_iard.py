"""IARD's file: what people do, turn by turn, and one clear error for what is none; and what seekers do beside it."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest
from test_seekers import FACTS, FILMS, WISH

from bench.acts import acted, acts_table, profile, rows_of_acts
from ilm_lib.data.conversations import Film, Turn
from ilm_lib.data.iard import IARD, read_iard
from ilm_lib.data.lines import DataError
from ilm_lib.profiles import data_dir
from ilm_lib.tasks.seekers import Conversation, TemplateSeeker


def turn(place, role, text, *acts):
    return {"utterance_pos": place, "worker_id": 1, "role": role, "utterance_text": text, "sub-intent/action": [*acts]}


def dialogue():
    said = {
        "S1": turn(1, "seeker", "Hi, like @11 <Heat  (1995)> &amp; <b>", "IQU", "PRO"),
        "R2": turn(2, "recommender", "@12 <Up (2009)>", "REC-S"),
        "S3": turn(3, "seeker", "seen it", "SEE", "REJ"),
        "R4": turn(4, "recommender", "@13 <It (2017)> or @11 <Heat (1995)>", "REC-E"),
        "S5": turn(5, "seeker", "@13 <It (2017)> it is", "ACC", "OTH"),
    }
    return {"accepted_recommendation": [5], "dialogue_info": said}


def write(path, dialogues):
    path.write_text(json.dumps(dialogues, indent=1), encoding="utf-8")
    return path


def test_a_dialogue_has_films_in_their_places_and_what_turns_do(tmp_path):
    path = write(tmp_path / "d.json", {"7": dialogue(), "8": {**dialogue(), "accepted_recommendation": []}})
    one, other = read_iard(path)
    assert (one.id, other.id, one.accepted, other.accepted) == ("7", "8", (4,), ())
    assert one.turns[0] == Turn(False, ("Hi, like ", Film("11", "Heat (1995)"), " & <b>"))
    assert one.turns[1] == Turn(True, (Film("12", "Up (2009)"),))
    assert one.acts == (("IQU", "PRO"), ("REC-S",), ("SEE", "REJ"), ("REC-E",), ("ACC", "OTH"))
    packed = tmp_path / "d.json.gz"
    packed.write_bytes(gzip.compress(b"\n\n" + path.read_bytes()))
    assert read_iard(packed) == [one, other]


def changed(**turns):
    made = dialogue()
    for place, change in turns.items():
        made["dialogue_info"][place] = {**made["dialogue_info"][place], **change}
    return made


@pytest.mark.parametrize(
    "made, line, said",
    [
        (changed(S3={"role": "bot"}), 26, "turn 'S3' of dialogue '7' is none of IARD .ValueError: role 'bot'"),
        (changed(S3={"sub-intent/action": ["REC-S"]}), 26, "intent 'REC-S'"),
        (changed(S3={"sub-intent/action": 3}), 26, "TypeError"),
        (changed(S3={"utterance_text": None}), 26, "AttributeError"),
        (changed(S3={"utterance_text": "\ud800"}), 26, "UnicodeEncodeError"),
        ({**dialogue(), "accepted_recommendation": [3]}, 3, "accepted in turn 3, which has no ACC"),
        ({**dialogue(), "accepted_recommendation": [True]}, 3, "accepted in turn True"),
        ({**dialogue(), "accepted_recommendation": [9]}, 3, "accepted in turn 9"),
        ({"dialogue_info": {}}, 2, "dialogue '7' has no dialogue_info or accepted_recommendation"),
        ({**dialogue(), "dialogue_info": []}, 6, "is no JSON object"),
        ([], 2, "is no JSON object"),
    ],
)
def test_what_is_none_names_file_and_line(tmp_path, made, line, said):
    path = write(tmp_path / "d.json", {"7": made})
    with pytest.raises(DataError, match=f"d.json:{line}: .*{said}.* Write it as IARD does"):
        read_iard(path)


@pytest.mark.parametrize(
    "text, line, said",
    [
        ('{"7": \n{,}}', 2, "is no JSON"),
        ("[\n]", 1, "is no JSON object"),
        ('{"7":\n{"a": 1,\n"a": 2}}', 3, "'a' stands twice"),
        ("[" * 100_000, None, "is no JSON"),
    ],
)
def test_what_is_no_json_names_file_and_line(tmp_path, text, line, said):
    path = tmp_path / "d.json"
    path.write_text(text)
    with pytest.raises(DataError, match=f"d.json{f':{line}' if line else ''}: .*{said}"):
        read_iard(path)
    with pytest.raises(DataError, match="none.json.gz"):
        read_iard(tmp_path / "none.json.gz")


def test_the_profile_counts_turns_films_and_acceptances(tmp_path):
    dialogues = read_iard(
        write(tmp_path / "d.json", {"7": dialogue(), "8": {**dialogue(), "accepted_recommendation": []}})
    )
    found = profile(dialogues)
    assert found["turns: accepts"] == (pytest.approx(1 / 3), 6) and found["turns: rejects"] == (pytest.approx(1 / 3), 6)
    assert found["films in a turn that recommends"] == (1.5, 4)
    assert found["turns that recommend until a film is accepted"] == (2, 1), "the other accepts none"
    assert found["films first named by the recommender"] == (2, 2) and found["films first named by the seeker"] == (
        1,
        2,
    )
    assert found["a film is accepted"] == (0.5, 2) and found["turns of the seeker"] == (3, 2)


def test_a_seeker_that_found_its_film_stops_there():
    rows = {film.id: row for row, film in enumerate(FILMS)}
    talks = []
    for _ in range(2):
        talk = Conversation(TemplateSeeker(WISH, FACTS, FILMS, 1), FILMS, rows)
        talk.recommend([1, 2])
        talk.recommend([2, 3])
        talks.append(talk)
    found, none = acted(talks, np.array([[False, True], [False, False]]), [WISH] * 2, FILMS)
    assert len(none.turns) == len(none.acts) == 5 and not none.accepted
    assert len(found.turns) == len(found.acts) == 5 and found.accepted == (4,) and found.acts[-1] == ("ACC",)
    assert found.turns[3].films == [FILMS[2], FILMS[0]] and found.acts[2] == none.acts[2] == ("SEE", "CRI-A")
    table = acts_table(pd.DataFrame([*rows_of_acts("people", [none]), *rows_of_acts("simulated", [found])]))
    assert "| a film is accepted | 0.00 | 1.00 |" in table
    assert "| turns that recommend until a film is accepted |  | 2.00 |" in table


@pytest.mark.skipif(not (data_dir() / IARD).is_file(), reason="IARD is not in the data folder")
def test_the_file_itself():
    dialogues = read_iard(data_dir() / IARD)
    assert (len(dialogues), sum(len(d.turns) for d in dialogues), sum(len(d.accepted) for d in dialogues)) == (
        336,
        4583,
        427,
    )
    assert sum(len(turn.films) for d in dialogues for turn in d.turns) == 2659
