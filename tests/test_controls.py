"""Controls of simulated conversations: what is shown in their place, ranks turn by turn, checks, agreement."""

import numpy as np
import pytest

from ilm_lib.data.conversations import Film, FilmCatalogue, Turn
from ilm_lib.tasks.controls import TOLD, agreement, checks, opening, ranks_by_turn, turns_shuffled, words_shuffled
from ilm_lib.tasks.seekers import Conversation, Reply, Wish, leaks
from ilm_lib.tasks.simulated import SeekerWorld

FILMS, USERS = 24, 12
GENRES = ("Drama", "Crime", "Western", "Comedy")
A, B = Film("1", "Heat (1995)"), Film("2", "Up (2009)")
TURNS = [
    Turn(False, ("a crime film tonight. I liked ", A, ".")),
    Turn(True, ("How about ", B, "?")),
    Turn(False, (B, " is too new. From the nineties, please")),
    Turn(True, ("How about ", B, "?")),
    Turn(False, ("Do you know a slow one?",)),
]


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    histories = [rng.permutation(FILMS)[:6] for _ in range(USERS)]
    catalogue = FilmCatalogue(
        ids=list(range(FILMS)),
        titles=[f"Zq{n} ({1950 + n})" for n in range(FILMS)],
        genres=[f"{GENRES[n % 4]}, {GENRES[(n + 1) % 4]}" for n in range(FILMS)],
        plots=["" for _ in range(FILMS)],
        shares=np.zeros(FILMS),
        histories=histories,
        rows={},
    )
    return SeekerWorld.of(catalogue, {n: [f"tag {chr(97 + n)}{chr(97 + n)}", "slow"] for n in range(FILMS)})


def words(turns):
    return [w for t in turns if not t.recommender for s in t.content if isinstance(s, str) for w in s.split()]


def test_the_opening_alone_is_what_was_said_first():
    shown = opening(TURNS)
    assert shown[:2] == TURNS[:2] and shown[3] == TURNS[3]
    assert shown[2] == shown[4] == Turn(False, ("",))


def test_shuffled_turns_are_the_seekers_and_stand_in_its_places():
    shown = turns_shuffled(TURNS)
    assert [t.recommender for t in shown] == [t.recommender for t in TURNS]
    assert [shown[1], shown[3]] == [TURNS[1], TURNS[3]]
    said = lambda turns: sorted(repr(t) for t in turns if not t.recommender)
    assert said(shown) == said(TURNS)
    others = [turns_shuffled([Turn(False, (f"turn {n}.{k}",)) for k in range(3)]) for n in range(20)]
    assert len({tuple(t.content[0][-1] for t in turns) for turns in others}) > 3, "talks have orders of their own"
    assert turns_shuffled(TURNS) == shown, "the same talk, the same order"


def test_shuffled_words_stay_words_and_films_stay_films():
    shown = words_shuffled(TURNS)
    assert sorted(words(shown)) == sorted(words(TURNS)) and words(shown) != words(TURNS)
    assert [t.films for t in shown] == [t.films for t in TURNS]
    assert [t for t in shown if t.recommender] == [t for t in TURNS if t.recommender]
    assert words_shuffled([]) == [] == opening([]) == turns_shuffled([])


def scores_of(world, wishes, better):
    """Scores by number, the film looked for better by so much with each turn."""

    def scores(talks):
        given = np.tile(np.arange(FILMS, dtype=float)[::-1], (len(talks), 1))
        for row, (wish, talk) in enumerate(zip(wishes, talks)):
            given[row, wish.goal] += better * sum(t.recommender for t in talk.turns)
        return given

    return scores


@pytest.mark.parametrize("better", [0, 6, 100])
def test_ranks_and_success_are_those_of_real_conversations(world, better):
    wishes, _ = world.wishes(10, 0)
    scores = scores_of(world, wishes, better)
    ranks, found, talks = ranks_by_turn(world, wishes, scores, 0, turns=4, shown=2)

    def recommend(all_talks, going):
        best = []
        for n, row in zip(going, scores(all_talks)[going]):
            row[all_talks[n].named] = -np.inf
            best.append(np.argsort(-row)[:2].tolist())
        return best

    np.testing.assert_array_equal(found, world.found(wishes, recommend, 0, turns=4))
    assert ranks.shape == (10, 4) and (ranks >= 1).all()
    np.testing.assert_array_equal(found, np.logical_or.accumulate(ranks <= 2, axis=1))
    assert all(len(t.turns) == 9 and t.found is None and w.goal not in t.named for t, w in zip(talks, wishes))
    if better == 100:
        assert (ranks[:, 1:] == 1).all() and found[:, 1].all()
    assert checks(talks, world.facts, wishes, 2) == {"leaks": 0, "repeated": 0.0, "valid": 1.0}


class Says:
    """A seeker of one sentence."""

    def __init__(self, *content):
        self.content = content

    def opens(self):
        return self.content

    def replies(self, recommended):
        return Reply(("No.",), False)


def test_checks_count_what_may_not_be(world):
    wish = Wish(3, (), frozenset())
    told = lambda *content: Conversation(Says(*content), world.films, world.rows)
    talks = [told("a drama"), told("like zq3"), told(world.films[3], " is it")]
    for talk in talks:
        talk.recommend([5, 6])
        talk.recommend([7, 5])
    talks[0].recommend([8])
    found = checks(talks, world.facts, [wish] * 3, 2)
    assert found == {"leaks": 2, "repeated": pytest.approx(3 / 13), "valid": pytest.approx(6 / 7)}
    named = told("a drama")
    named.recommend([3, 4])
    named.turns.append(Turn(False, ("zq3 indeed",)))
    assert checks([named], world.facts, [wish], 2)["leaks"] == 0, "once recommended, its name is known"


def test_a_model_is_shown_the_control_and_the_seeker_goes_on(world):
    for name, told in TOLD.items():
        wishes, _ = world.wishes(4, 0)
        for talk, wish in zip(world.talks(wishes, 0), wishes):
            before = list(talk.turns)
            shown = told(talk.turns)
            assert talk.turns == before and len(shown) == len(before), name
            assert not any(leaks(w, world.facts[wish.goal].title) for w in words(shown))


def test_agreement():
    one = {"a": np.array([1, 1, 1, 0]), "b": np.array([1, 0, 0, 0]), "c": np.array([1, 1, 0, 0])}
    assert agreement(one, one) == pytest.approx({"kendall": 1, "spearman": 1, "same": 1, "kappa": 1})
    turned = {"a": one["b"], "b": one["a"], "c": one["c"]}
    found = agreement(one, turned)
    assert found["kendall"] == pytest.approx(-1) and found["spearman"] == pytest.approx(-1)
    assert found["same"] == pytest.approx(8 / 12) and found["kappa"] == pytest.approx((8 / 12 - 0.5) / 0.5)
    with pytest.raises(ValueError, match="give the same two or more"):
        agreement(one, {"a": one["a"]})
