"""What conversations show: who found a film after how many turns, which films of recorded dialogues the model names,
rows of results.csv, and claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from ilm_lib.methods import METHODS
from ilm_lib.metrics import FEWEST_PAIRS, paired_bootstrap
from ilm_lib.paper import CHAT_CLAIMS, RECORDED_CLAIMS, RESULT_COLUMNS, TOLD_CLAIMS
from ilm_lib.report.results import Claim
from ilm_lib.settings import Params
from ilm_lib.study import inputs, recorded, replies, single_turns
from ilm_lib.study.claims import corrected_for_all, judge, not_tested
from ilm_lib.study.conversation import Told, answers, success
from ilm_lib.tasks.conversation import PROTOCOLS, Protocol, Question, recall_metrics

TABLE, TASK, RULE, WRITTEN, ASKED = "conversation", "simulated", "excluded", "written", "single turns"
HISTORY: dict[Protocol, str] = {"strict": "excluded", "usual": "kept"}
#: What `results.csv` calls a variant: what the model is told, and whether another seeker's words are.
VARIANTS: dict[str, tuple[Told, bool]] = {
    "": ("words and films", False),
    "told=words": ("words", False),
    "told=films": ("films", False),
    "told=another": ("words and films", True),
    "llm=off": ("words and films, LLM off", False),
}
TITLES = "nats a word token of a person's reply, films as titles alone"
MEASURES = (
    ("links_valid", "items that the catalogue has, of those in replies"),
    ("repeated", "items named before, of those recommended"),
    ("genres_right", "genres that are the film's, of those told of it"),
    ("decades_right", "decades that are the film's, of those told of it"),
    ("distinct-1", "different words, of all"),
    ("distinct-2", "different pairs of words, of all"),
    ("log_pplx", "nats a word token of a person's reply"),
    ("log_pplx", TITLES),
)
TOLD = {
    "log_pplx": "nats a token of the answer",
    "genres_right": "genres right, of those told",
    "decades_right": "decades right, of those told",
}
NAMES = {
    "": "words and films",
    "told=words": "words alone",
    "told=films": "films alone",
    "told=another": "another seeker's words",
    "llm=off": "words and films, LLM off",
}

RULES = """
* Compared is whether a seeker has its film after the last turn, over all seekers who are asked, averaged over the
  seeds; the interval and the two-sided p-value come from a bootstrap over seekers, and p is corrected for all
  comparisons of this page (Holm).
* In recorded dialogues it is whether what the recommender names is among the first ten (strict protocol), averaged
  within each dialogue; the bootstrap is over dialogues, and p is corrected for these comparisons by themselves.
* *Words alone*, *films alone* and *LLM off* are trained each by itself, in the same way. *Another seeker's words* are
  told to the model that was trained with both.
* What is told of an item by its tokens is compared in log probability a token, averaged for each item; the bootstrap is
  over items.
* **reproduced**, which here means that the claim holds: the difference has the direction of the claim and p < .05.
  **not reproduced**: the interval lies wholly on the other side. **inconclusive**: anything else.
"""


def method_of(params: Params) -> str:
    """The method that talks: ILM, or the first of the profile's that reads an item's vector."""
    return next(m for m in ("ILM", *params.methods) if m in params.methods and METHODS[m].encoder in ("mlp", "qformer"))


def found(params: Params, seed: int, variant: str, *, build: bool = False) -> np.ndarray:
    """(S, turns) bool, whether each seeker has its film after so many turns."""
    told, strangers = VARIANTS[variant]
    artifact = success(params, seed, method_of(params), told, strangers=strangers, build=build)
    return np.load(artifact.path("success.npz"))["found"]


def result_rows(params: Params, *, build: bool = False) -> pd.DataFrame:
    """Rows of results.csv of every variant and seed: success@t, and recall in recorded dialogues if there are some."""
    rows = []
    for variant in VARIANTS:
        for seed in params.report_seeds:
            given = found(params, seed, variant, build=build)
            about = (TABLE, params.data.name, TASK, "", RULE, "", method_of(params), variant, seed)
            rows += _rows(about, {f"success@{turn}": has for turn, has in enumerate(given.T, 1)})
    for method, variant in _recorded(params):
        for seed in params.report_seeds:
            for protocol, ranks in recorded_ranks(params, seed, method, variant, build=build).items():
                about = (TABLE, params.data.name, protocol, "", HISTORY[protocol], "", method, variant, seed)
                rows += _rows(about, recall_metrics(ranks))
    texts = [(WRITTEN, RULE, replies.measured)] + [(ASKED, "", single_turns.measured)] * (params.chat.elm_weight > 0)
    for seed in params.report_seeds:
        for task, rule, measured in texts:
            for variant, values in measured(params, seed, method_of(params), build=build).items():
                about = (TABLE, params.data.name, task, "", rule, "", method_of(params), variant, seed)
                rows += [(*about, name, round(value, 6), n) for name, (value, n) in values.items()]
    return pd.DataFrame(rows, columns=list(RESULT_COLUMNS))


def _rows(about: tuple, found: Mapping[str, np.ndarray]) -> list[tuple]:
    """Rows of results.csv: the mean of each metric's values (n,)."""
    return [(*about, name, round(float(values.mean()), 6), len(values)) for name, values in found.items()]


def _recorded(params: Params) -> list[tuple[str, str]]:
    """Methods and variants that are asked in recorded dialogues; only the method that talks has variants."""
    if params.chat.recorded is None:
        return []
    talks = method_of(params)
    others = [m for m in params.methods if m != talks and METHODS[m].encoder in ("mlp", "qformer")]
    return [*((talks, variant) for variant in VARIANTS), *((method, "") for method in others)]


def recorded_ranks(
    params: Params, seed: int, method: str, variant: str, *, build: bool = False
) -> dict[Protocol, np.ndarray]:
    """(Q,) the rank of the film of every question of the recorded dialogues that ask, by protocol."""
    told, strangers = VARIANTS[variant]
    artifact = answers(params, seed, method, told, strangers=strangers, build=build)
    with np.load(artifact.path("ranks.npz")) as ranks:
        return {protocol: ranks[protocol] for protocol in PROTOCOLS}


def table(results: pd.DataFrame) -> pd.DataFrame:
    """success@t of each variant, the mean over seeds."""
    means = results[results["task"] == TASK].pivot_table(
        index="variant", columns="metric", values="value", dropna=False
    )
    means = means.reindex(list(VARIANTS)).rename(index=NAMES).round(3)
    return means.rename_axis(index="told", columns=None).reset_index()


def recorded_table(results: pd.DataFrame, protocol: Protocol) -> pd.DataFrame:
    """Recall and MRR of each method and variant by a protocol, the mean over seeds."""
    rows = results[results["task"] == protocol]
    means = rows.pivot_table(index=["method", "variant"], columns="metric", values="value", sort=False).round(3)
    means = means.reset_index().rename(columns={"variant": "told"}).rename_axis(columns=None)
    return means.assign(told=means["told"].map(NAMES))[["method", "told", "R@1", "R@10", "R@50", "MRR"]]


def written_table(results: pd.DataFrame) -> pd.DataFrame:
    """Measures of what is written (`tasks.replies`), the mean over seeds, and what each is."""
    rows = results[results["task"] == WRITTEN]
    means = rows.groupby(["variant", "metric"])["value"].mean().round(3)
    shown = [(means.get(("" if name != TITLES else "tokens=off", metric)), name) for metric, name in MEASURES]
    return pd.DataFrame([(name, value) for value, name in shown if value is not None], columns=["measure", "value"])


def single_turns_table(results: pd.DataFrame) -> pd.DataFrame:
    """What is told of items by their tokens alone (`single_turns`), the mean over seeds."""
    rows = results[results["task"] == ASKED]
    means = rows.pivot_table(index="variant", columns="metric", values="value").round(3)
    means = means[[metric for metric in TOLD if metric in means]]
    means = means.rename(index={"": "the item's own", "vectors=another": "another item's"}, columns=TOLD)
    return means.rename_axis(index="tokens", columns=None).reset_index()


def by_films_named(params: Params, seed: int) -> pd.DataFrame:
    """R@10 of the method that talks, strict protocol, by how many films were named before; a row a variant."""
    named = np.array([min(len(q.named), 3) for q in recorded.questions(params, "strict")])
    of = {f"{n} named" if n < 3 else "3 or more": named == n for n in range(4)}
    rows = {}
    for variant, name in NAMES.items():
        hit = recorded_ranks(params, seed, method_of(params), variant)["strict"] <= 10
        rows[name] = {label: hit[which].mean() for label, which in of.items()}
    shown = pd.DataFrame(rows).T.round(3).astype(object)
    shown.loc["questions"] = {label: which.sum() for label, which in of.items()}
    return shown.rename_axis("told").reset_index()


def memorable(params: Params, seed: int) -> dict[str, Question]:
    """Four questions of recorded dialogues, chosen by rule among those that the seeker's turn leads up to.

    Where the whole model has the film among its first three, what each of words and films adds, by the rank without it;
    and of the 500 films that most people rated the one that it is furthest from.
    """
    told, _ = recorded.asking(params)
    asked, method = recorded.questions(params, "strict"), method_of(params)
    ranks = {v: recorded_ranks(params, seed, method, v)["strict"] for v in ("", "told=words", "told=films")}
    follows = np.array([q.turn > 0 and not told[q.dialogue].turns[q.turn - 1].recommender for q in asked])
    known = np.argsort(-inputs.dataset(params).item_counts())[:500]
    found = follows & (ranks[""] <= 3)
    of_known = follows & np.isin([q.target for q in asked], known)
    most = lambda among, rank: asked[int(np.where(among, rank, -1).argmax())]
    return {
        "words and films together": most(found, np.minimum(ranks["told=words"], ranks["told=films"])),
        "the words tell": most(found & (ranks["told=words"] <= 10), ranks["told=films"]),
        "the films tell": most(found & (ranks["told=films"] <= 10), ranks["told=words"]),
        "it fails": most(of_known, ranks[""]),
    }


def chat_claims(params: Params, *, build: bool = False) -> list[Claim]:
    """Whether words, films and the LLM each help to find a film, by `RULES`; in recorded dialogues where there are."""
    seeds, method = params.report_seeds, method_of(params)

    def mean(values: Callable[[int, str], np.ndarray]) -> dict[str, np.ndarray]:
        return {variant: np.mean([values(seed, variant) for seed in seeds], axis=0) for variant in VARIANTS}

    last = mean(lambda seed, variant: found(params, seed, variant, build=build)[:, -1])
    where = f"notebook 11, {params.data.name}, success after {params.chat.turns} turns, {len(last['']):,} seekers"
    claims = _compared(CHAT_CLAIMS, last, where, len(seeds), "seekers")
    if params.chat.elm_weight:
        each = [single_turns.by_item(params, seed, method, build=build) for seed in seeds]
        told = {variant: np.mean([one[variant] for one in each], axis=0) for variant in ("", *TOLD_CLAIMS)}
        where = f"notebook 11, {params.data.name}, mean log probability of a token, {len(told['']):,} items"
        claims += _compared(TOLD_CLAIMS, told, where, len(seeds), "items")
    if params.chat.recorded is None:
        return claims
    dialogue = np.array([question.dialogue for question in recorded.questions(params, "strict")])

    def hits(seed: int, variant: str) -> np.ndarray:
        ranks = recorded_ranks(params, seed, method, variant, build=build)["strict"]
        return pd.Series(ranks <= 10).groupby(dialogue).mean().to_numpy()

    own = mean(hits)
    where = f"notebook 11, {params.data.name}, R@10, strict protocol, {len(own['']):,} dialogues"
    return claims + _compared(RECORDED_CLAIMS, own, where, len(seeds), "dialogues")


def _compared(
    sentences: Mapping[str, str], values: Mapping[str, np.ndarray], where: str, seeds: int, units: str
) -> list[Claim]:
    """A claim for each variant: that the whole model is ahead of it."""
    if len(values[""]) < FEWEST_PAIRS:
        return [not_tested(sentence, "–", f"needs {FEWEST_PAIRS} {units}") for sentence in sentences.values()]
    tests = {variant: paired_bootstrap(values[""], values[variant]) for variant in sentences}
    corrected = corrected_for_all({variant: test.p_value for variant, test in tests.items()})
    claims = []
    for variant, sentence in sentences.items():
        test, p = tests[variant], corrected[variant]
        judged, why = judge(test, p, len(tests), claimed_by="the claim")
        ours = f"{values[''].mean():.3f} against {values[variant].mean():.3f}"
        claims.append(Claim(sentence, "–", ours, test.ci_low, test.ci_high, p, seeds, judged, where, why))
    return claims
