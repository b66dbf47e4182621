"""What the score read-out shows: metrics of every user, rows of results.csv, and claims by rules written before."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ilm_lib.files import read_json
from ilm_lib.methods import CF_METHODS, METHODS
from ilm_lib.metrics import FEWEST_PAIRS, paired_bootstrap
from ilm_lib.paper import RANKING_METRICS, RESULT_COLUMNS, SCORING_CLAIMS
from ilm_lib.report.results import Claim
from ilm_lib.settings import Params
from ilm_lib.study import inputs, openp5
from ilm_lib.study.artifacts import Artifact
from ilm_lib.study.blend import blended
from ilm_lib.study.claims import corrected_for_all, judge, not_tested
from ilm_lib.study.openp5_results import best_on_dev, per_user_metrics
from ilm_lib.study.scoring import score, score_ranking

TABLE = "scoring"
LLM_OFF = {"score.context": "last"}  # the head reads the items' tokens themselves
NO_SIDE = {"score.side_layers": 0}  # and of one place alone
#: What is compared to see what the LLM adds: what reads its states, changes, and what `results.csv` calls them.
SHARES: dict[str, list[tuple[dict[str, Any], str]]] = {
    "a side network": [({}, ""), (LLM_OFF, "context=last")],
    "the query alone": [(NO_SIDE, "side_layers=0"), (NO_SIDE | LLM_OFF, "context=last without side layers")],
}
ANOTHERS = "another item's vector"
LENGTHS = (1, 6, 11, 21, 51, 101, np.inf)  # of a history, where groups of users begin
TASK, ALONE, RULE, RULES_OF_HISTORY = "sequential", "straightforward", "excluded", ("kept", "excluded")
RECENT = "factors=recent"
SHOWN = ("HR@10", "NDCG@10")

RULES = """
* Compared is HR@10 on the sequential task with the history excluded, over all test users, each user's metric averaged
  over the seeds; the interval and the two-sided p-value come from a bootstrap over users, and p is corrected for all
  comparisons of this page (Holm).
* *Recent factors* are chosen on dev, for each method and seed by itself. These two claims were added after such factors
  had been seen to help on dev.
* *The LLM off* is the same encoder and head, trained the same way, that read the items' tokens in place of the LLM's
  hidden states. *No side network*: the query is linear in what stands at one place.
* **reproduced**, which here means that the claim holds: the difference has the direction of the claim and p < .05.
  **not reproduced**: the interval lies wholly on the other side. **inconclusive**: anything else.
"""


def methods(params: Params) -> list[str]:
    """The methods over the LLM that are scored: the main ones of the profile, and `equal_mlp`. What each loss of
    phase 1 gives is asked in notebook 07."""
    return [m for m in ("MLP", "MLP-N", "ILM-rand", "ILM") if m in {*params.methods, equal_mlp(params)}]


def equal_mlp(params: Params) -> str:
    """The MLP with as many tokens as the Q-Former, with which alone the Q-Former can be compared."""
    return "MLP" if params.qformer.num_query_tokens == params.phase2.mlp_tokens else "MLP-N"


def baselines(params: Params) -> list[str]:
    """What needs no LLM."""
    return [*openp5.baselines(params), *(["Oracle"] if params.data.source == "toy" else [])]


def ranking(params: Params, seed: int, method: str, *, build: bool = False) -> Artifact:
    """A method's ranking for all test users: scored over the LLM, or a baseline's own."""
    asked = {"evaluation.max_users": None, "evaluation.prompts": ("seen",), "evaluation.histories": RULES_OF_HISTORY}
    rank = openp5.evaluation if METHODS[method].encoder is None else score_ranking
    return rank(params.with_(**asked), seed, method, build=build)


def seeds_of(params: Params, method: str, variant: str = "") -> tuple[int, ...]:
    """Of the report's seeds those that a method was run with: all of ILM itself and of what needs no LLM, and the
    first `ablations.compared_seeds` of what ILM is compared with over the LLM."""
    own = METHODS[method].encoder is None or (method == "ILM" and variant in ("", RECENT))
    return params.report_seeds if own else compared_seeds(params)


def compared_seeds(params: Params) -> tuple[int, ...]:
    """The seeds that all methods have in common."""
    return params.report_seeds[: params.ablations.compared_seeds]


def per_user(params: Params, seed: int, method: str, rule: str, *, build: bool = False) -> dict[str, np.ndarray]:
    """HR and NDCG of every test user on the sequential task, (U',) each."""
    prompt = "seen" if METHODS[method].encoder is None else ""
    return per_user_metrics(ranking(params, seed, method, build=build), TASK, prompt, rule)


def by_user(params: Params, method: str, *, seeds: Sequence[int] = (), build: bool = False) -> dict[str, np.ndarray]:
    """`per_user` with the history excluded, means over seeds; without any over those that all methods have."""
    return mean_over([per_user(params, seed, method, RULE, build=build) for seed in seeds or compared_seeds(params)])


def mean_over(runs: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Metrics of every user, (U',) each, over runs."""
    return {metric: np.mean([run[metric] for run in runs], 0) for metric in runs[0]}


def by_readout(params: Params, *, build: bool = False) -> pd.DataFrame:
    """HR@10 on the sequential task, mean over seeds and the users that the beam was asked for: a row a method.

    Columns method, beam, score; the beam answers the profile's first wording.
    """
    rule = RULE if RULE in params.evaluation.histories else "kept"
    rows = []
    for method in [m for m in methods(params) if m in params.methods]:
        found: dict[str, list[float]] = {"beam": [], "score": []}
        for seed in seeds_of(params, method):
            beam = openp5.evaluation(params, seed, method, build=build)
            scored = ranking(params, seed, method, build=build)
            with np.load(beam.path("tops.npz")) as asked, np.load(scored.path("tops.npz")) as everybody:
                among = np.isin(everybody["users"], asked["users"])
            found["beam"].append(per_user_metrics(beam, TASK, params.evaluation.prompts[0], rule)["HR@10"].mean())
            found["score"].append(per_user(params, seed, method, rule)["HR@10"][among].mean())
        rows.append((method, *(float(np.mean(found[readout])) for readout in ("beam", "score"))))
    return pd.DataFrame(rows, columns=["method", "beam", "score"])


def result_rows(params: Params, names: Sequence[str], *, variant: str = "", build: bool = False) -> pd.DataFrame:
    """Rankings of methods over their seeds as rows of `results.csv`.

    Args:
        variant: what differs from the profile, e.g. "context=last".
    """
    rows = []
    for method in names:
        for seed in seeds_of(params, method, variant):
            for rule in RULES_OF_HISTORY:
                found = per_user(params, seed, method, rule, build=build)
                rows += _rows(params, found, TASK, rule, method, variant, seed)
    return pd.DataFrame(rows, columns=list(RESULT_COLUMNS))


def _rows(
    params: Params, found: dict[str, np.ndarray], task: str, rule: str, method: str, variant: str, seed: int
) -> list[tuple[Any, ...]]:
    readout = "" if METHODS[method].encoder is None else "score"
    key = (TABLE, params.data.name, task, "", rule, readout, method, variant, seed)
    return [(*key, metric, float(found[metric].mean()), len(found[metric])) for metric in RANKING_METRICS]


def beside_factors(params: Params, names: Sequence[str], *, build: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Methods with a user's recent factors beside them (`study.blend`).

    Args:
        names: of methods, and "ILM, LLM off".

    Returns:
        rows of `results.csv`, and a table of HR@10 and NDCG@10 (history excluded, mean over seeds) without the recent
        factors and with them, and the half-lives (items) and weights that dev chose, a number a seed. The factorisation
        has a second row: of a user's training part alone.
    """
    rows, table = [], []
    for name in names:
        method, off = name.removesuffix(", LLM off"), name.endswith(", LLM off")
        each, variant = (params.with_(**LLM_OFF), "context=last with recent factors") if off else (params, RECENT)
        seeds = seeds_of(params, method, variant)
        runs = [blended(each, seed, method, build=build) for seed in seeds]
        chosen = [read_json(run.path("blend.json")) for run in runs]
        settings = [" ".join(f"{c[key]:g}" for c in chosen) for key in ("half_life", "weight")]
        for task in (TASK, ALONE) if method in CF_METHODS.values() else (TASK,):
            found = {rule: [per_user_metrics(run, task, "", rule) for run in runs] for rule in RULES_OF_HISTORY}
            for rule, of_seeds in found.items():
                for seed, metrics in zip(seeds, of_seeds):
                    rows += _rows(params, metrics, task, rule, method, variant, seed)
            after = mean_over(found[RULE])
            before = by_user(each, method, seeds=seeds, build=build) if task == TASK else {}
            numbers = [(before[m].mean() if before else np.nan, after[m].mean()) for m in SHOWN]
            table.append((name if before else f"{name}, training part", *numbers[0], *numbers[1], *settings))
    columns = ["method", *(f"{metric}{how}" for metric in SHOWN for how in ("", " + factors")), "half-life", "weight"]
    return pd.DataFrame(rows, columns=list(RESULT_COLUMNS)), pd.DataFrame(table, columns=columns)


def recent_by_user(params: Params, method: str, *, seeds: Sequence[int], build: bool = False) -> dict[str, np.ndarray]:
    """As `by_user`, with the recent factors beside the method."""
    runs = [blended(params, seed, method, build=build) for seed in seeds]
    return mean_over([per_user_metrics(run, TASK, "", RULE) for run in runs])


def scoring_claims(params: Params, *, build: bool = False) -> list[Claim]:
    """Whether ILM beats what it is compared with once all items are scored, by `RULES`."""
    if "ILM" not in methods(params):
        return [not_tested(sentence, "–", "needs the methods ILM") for sentence in SCORING_CLAIMS.values()]
    value = lambda p, m="ILM", seeds=(): by_user(p, m, seeds=seeds, build=build)["HR@10"]
    every, ours = params.report_seeds, value(params)
    pairs = {"LLM off": (ours, value(params.with_(**LLM_OFF)))} | {n: (ours, value(params, n)) for n in methods(params)}
    pairs["MLP-N"] = pairs[equal_mlp(params)]
    sasrec = value(params, "SASRec", every)
    of_all_seeds = {"SASRec": (value(params, seeds=every), sasrec)}
    if not params.embeddings.file:
        recent = [recent_by_user(params, m, seeds=every, build=build)["HR@10"] for m in ("ILM", "SASRec")]
        of_all_seeds |= {"recent factors": (recent[0], sasrec), "recent factors beside both": (recent[0], recent[1])}
    pairs |= of_all_seeds
    if params.score.side_layers:
        pairs["LLM off, no side network"] = tuple(value(params.with_(**NO_SIDE | each)) for each in ({}, LLM_OFF))
    tests = {name: paired_bootstrap(*pairs[name]) for name in SCORING_CLAIMS if name in pairs}
    corrected = corrected_for_all({n: test.p_value for n, test in tests.items()})
    claims = []
    for name, sentence in SCORING_CLAIMS.items():
        if name not in tests:
            claims.append(not_tested(sentence, "–", f"needs {name} beside ILM"))
            continue
        test, (one, other) = tests[name], pairs[name]
        judged, why = judge(test, corrected[name], len(tests), claimed_by="the claim")
        claims.append(
            Claim(
                sentence,
                "–",
                f"{one.mean():.4f} against {other.mean():.4f}",
                test.ci_low,
                test.ci_high,
                corrected[name],
                len(every if name in of_all_seeds else compared_seeds(params)),
                judged,
                f"notebook 10, {params.data.name}, HR@10, sequential, history excluded, {len(ours):,} users",
                why,
            )
        )
    return claims


def llm_share(params: Params, method: str, *, build: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the LLM adds, where a side network reads its states and where the query alone does.

    Returns:
        rows of `results.csv`, and a table of HR@10 and NDCG@10 with the LLM on and off (history excluded); p (of HR@10,
        two-sided, not corrected) comes from a bootstrap over users.
    """
    rows, table = [], []
    for head, both in SHARES.items() if params.score.side_layers else [("the query alone", SHARES["a side network"])]:
        found = []
        for changes, variant in both:
            each = params.with_(**changes)
            rows.append(result_rows(each, [method], variant=variant, build=build))
            found.append(by_user(each, method, build=build))
        metrics = [run[metric].mean() for metric in SHOWN for run in found]
        table.append((head, *metrics, paired_bootstrap(*(run["HR@10"] for run in found)).p_value))
    names = [f"{metric}, LLM {state}" for metric in SHOWN for state in ("on", "off")]
    return pd.concat(rows), pd.DataFrame(table, columns=["read by", *names, "p"])


def by_length(params: Params, method: str, *, build: bool = False) -> pd.DataFrame:
    """HR@10 with the LLM on and off by the length of the history: a row a group of users, no group of too few.

    Columns "items of history", users, "LLM on", "LLM off", p (two-sided, corrected for the groups).
    """
    on, off = (by_user(each, method, build=build)["HR@10"] for each in (params, params.with_(**LLM_OFF)))
    with np.load(ranking(params, params.report_seeds[0], method).path("tops.npz")) as asked:
        lengths = inputs.dataset(params).places.test[asked["users"]]
    rows, tests = [], {}
    for first, last in itertools.pairwise(LENGTHS):
        group = (lengths >= first) & (lengths < last)
        label = f"{first:,} to {last - 1:,}" if np.isfinite(last) else f"{first:,} or more"
        if group.sum() >= FEWEST_PAIRS:
            tests[label] = paired_bootstrap(on[group], off[group]).p_value
            rows.append((label, int(group.sum()), on[group].mean(), off[group].mean()))
    table = pd.DataFrame(rows, columns=["items of history", "users", "LLM on", "LLM off"])
    return table.assign(p=[corrected_for_all(tests)[label] for label in table["items of history"]])


def dev_scores(params: Params, method: str, *, build: bool = False) -> pd.DataFrame:
    """The read-out as the profile has it, with one thing changed (`ablations.scored`), and with another item's vector
    in the place of every item's, on the dev items.

    Columns reading, seed, "dev HR@10", "dev NDCG@10": of the kept weights, history excluded.
    """
    rows = []
    for name, changes in {"as in the profile": {}, **params.ablations.scored, ANOTHERS: {}}.items():
        for seed in params.report_seeds[: params.ablations.seeds]:
            run = score(params.with_(**changes), seed, method, shuffled=name == ANOTHERS, build=build)
            rows.append({"reading": name, "seed": seed, **best_on_dev(run)})
    return pd.DataFrame(rows)
