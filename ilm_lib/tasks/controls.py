"""Does success with simulated seekers depend on what they say? Controls of it, and checks of what was said.

Zhu et al. ("How Reliable is Your Simulator?", WWW 2024) looked at iEvaLM's simulated users: the film's title leaked
into the talk, and success came from what was known before the first reply and hardly from the replies. So a success is
held against what the same recommender reaches when it is shown (`TOLD`)

    opening           what the seeker said first, and none of its replies: what is gained on it comes from the replies
    turns shuffled    the seeker's turns in another order: what is lost came from the order in which things were said
    words shuffled    all the seeker's words in another order: what is lost came from sentences
    another's words   the words of another seeker (`simulated.exchanged`): what is left has nothing to do with words

and, as a film is shown only once, against how high it stands after every turn (`ranks_by_turn`). `checks` counts what
may not be: words of the title, films that were recommended before, turns that are no recommendation.

Two simulators agree (`agreement`) where they put methods in the same order, and where the same seekers find their
films.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.stats import kendalltau, spearmanr

from ilm_lib.data.conversations import Film, Turn
from ilm_lib.tasks.conversation import Question, target_ranks
from ilm_lib.tasks.seekers import Conversation, Facts, Wish, leaks
from ilm_lib.tasks.simulated import SeekerWorld, Told

Scores = Callable[[Sequence[Conversation]], np.ndarray]


def opening(turns: Sequence[Turn]) -> list[Turn]:
    """The turns as they are, but for the seeker's words and films after its first turn."""
    first = next((n for n, turn in enumerate(turns) if not turn.recommender), None)
    return [turn if turn.recommender or n == first else Turn(False, ("",)) for n, turn in enumerate(turns)]


def turns_shuffled(turns: Sequence[Turn]) -> list[Turn]:
    """What the seeker said in one of its turns stands in another one; drawn by what was said."""
    own = [turn for turn in turns if not turn.recommender]
    mixed = iter([own[n] for n in _drawn(turns).permutation(len(own))])
    return [turn if turn.recommender else next(mixed) for turn in turns]


def words_shuffled(turns: Sequence[Turn]) -> list[Turn]:
    """All words of the seeker in any order, each place with as many as it had; films stay where they are."""
    own = [part.split() for turn in turns if not turn.recommender for part in turn.content if isinstance(part, str)]
    words = [word for part in own for word in part]
    mixed = iter([words[n] for n in _drawn(turns).permutation(len(words))])

    def other(part: str | Film) -> str | Film:
        return " ".join(next(mixed) for _ in part.split()) if isinstance(part, str) else part

    def spaced(content: Sequence[str | Film]) -> tuple[str | Film, ...]:
        parts = [other(part) for part in content]
        return tuple(f" {part} " if isinstance(part, str) and len(parts) > 1 else part for part in parts)

    return [turn if turn.recommender else Turn(False, spaced(turn.content)) for turn in turns]


TOLD: dict[str, Told] = {"opening": opening, "turns shuffled": turns_shuffled, "words shuffled": words_shuffled}


def _drawn(turns: Sequence[Turn]) -> np.random.Generator:
    """The same order for the same talk, in every process."""
    return np.random.default_rng(zlib.crc32(repr([turn.content for turn in turns]).encode()))


def ranks_by_turn(
    world: SeekerWorld, wishes: Sequence[Wish], scores: Scores, seed: int, *, turns: int = 5, shown: int = 3
) -> tuple[np.ndarray, np.ndarray, list[Conversation]]:
    """Conversations in which the film is looked for to the end: it is never shown, the next best one is.

    Up to the turn in which a seeker would have had its film, the conversation is the one of `SeekerWorld.found`.

    Args:
        scores: (S, M) of all films for all talks, higher is better; what was named so far is left out here.

    Returns:
        (S, turns) the film's rank before each turn of recommendations, 1 for the best; (S, turns) bool, whether the
        seeker would have had it by then, what `SeekerWorld.found` has; and the talks.
    """
    ranks = np.zeros((len(wishes), turns), np.int64)
    hits = np.zeros((len(wishes), turns), bool)
    turn = iter(range(turns))

    def recommend(talks: Sequence[Conversation], going: Sequence[int]) -> list[list[int]]:
        given, now, best = scores(talks), next(turn), []
        asked = [Question(n, 0, wish.goal, tuple(talk.named)) for n, (wish, talk) in enumerate(zip(wishes, talks))]
        ranks[:, now] = target_ranks(given, asked)
        for n, (row, talk) in enumerate(zip(given, talks)):
            row = row.copy()
            row[talk.named] = -np.inf
            first = np.argsort(-row)[: shown + 1].tolist()
            hits[n, now] = wishes[n].goal in first[:shown]
            best.append([film for film in first if film != wishes[n].goal][:shown])
        return best

    talks = world.held(wishes, recommend, seed, turns=turns)
    return ranks, np.logical_or.accumulate(hits, axis=1), talks


def checks(
    talks: Sequence[Conversation], facts: Sequence[Facts], wishes: Sequence[Wish], shown: int
) -> dict[str, float]:
    """What may not be in talks with those who wish.

    Returns:
        leaks: talks in which the seeker says a word of the title, or names the film, before it is recommended.
        repeated: the share of recommended films that were named before.
        valid: the share of recommending turns that name so many different films of the catalogue.
    """
    leaked, again, given, valid, asked = 0, 0, 0, 0, 0
    for talk, wish in zip(talks, wishes, strict=True):
        named: set[int] = set()
        leaky = False
        for turn in talk.turns:
            rows = [talk.rows[film.id] for film in turn.films if film.id in talk.rows]
            if turn.recommender:
                again, given = again + sum(row in named for row in rows), given + len(rows)
                valid, asked = valid + (len({*rows}) == len(turn.films) == shown), asked + 1
            elif wish.goal not in named:
                said = [part for part in turn.content if isinstance(part, str)]
                leaky |= wish.goal in rows or any(leaks(part, facts[wish.goal].title) for part in said)
            named.update(rows)
        leaked += leaky
    return {"leaks": leaked, "repeated": again / max(given, 1), "valid": valid / max(asked, 1)}


def agreement(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How far two simulators agree.

    Args:
        one, other: by method, (S,) bool, whether each of the same seekers found its film.

    Returns:
        kendall, spearman: of the methods' shares of success. same: the share of seekers, over all methods, of whom both
        say the same. kappa: Cohen's, the share beyond what chance brings at these shares of success.

    Raises:
        ValueError: the two do not have the same methods, or fewer than two.
    """
    if set(one) != set(other) or len(one) < 2:
        raise ValueError(f"methods to compare: {', '.join(one)} and {', '.join(other)}; give the same two or more")
    shares = [[float(np.mean(found[method])) for method in one] for found in (one, other)]
    a, b = (np.concatenate([found[method] for method in one]).astype(bool) for found in (one, other))
    same = float(np.mean(a == b))
    chance = float(a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean()))
    kappa = (same - chance) / (1 - chance) if chance < 1 else 1.0
    return {
        "kendall": float(kendalltau(*shares).statistic),
        "spearman": float(spearmanr(*shares).statistic),
        "same": same,
        "kappa": kappa,
    }
