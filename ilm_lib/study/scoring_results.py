"""What the score read-out shows: metrics of every user, rows of results.csv, and claims by rules written before."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ilm_lib.methods import METHODS
from ilm_lib.metrics import FEWEST_PAIRS, paired_bootstrap
from ilm_lib.paper import RANKING_METRICS, RESULT_COLUMNS, SCORING_CLAIMS
from ilm_lib.report.results import Claim
from ilm_lib.settings import Params
from ilm_lib.study import inputs, openp5
from ilm_lib.study.artifacts import Artifact
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
TASK, RULE, RULES_OF_HISTORY = "sequential", "excluded", ("kept", "excluded")

RULES = """
* Compared is HR@10 on the sequential task with the history excluded, over all test users, each user's metric averaged
  over the seeds; the interval and the two-sided p-value come from a bootstrap over users, and p is corrected for all
  comparisons of this page (Holm).
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


def per_user(params: Params, seed: int, method: str, rule: str, *, build: bool = False) -> dict[str, np.ndarray]:
    """HR and NDCG of every test user on the sequential task, (U',) each."""
    prompt = "seen" if METHODS[method].encoder is None else ""
    return per_user_metrics(ranking(params, seed, method, build=build), TASK, prompt, rule)


def by_user(params: Params, method: str, rule: str = RULE, *, build: bool = False) -> dict[str, np.ndarray]:
    """`per_user`, means over the report's seeds."""
    runs = [per_user(params, seed, method, rule, build=build) for seed in params.report_seeds]
    return {metric: np.mean([run[metric] for run in runs], 0) for metric in runs[0]}


def by_readout(params: Params, *, build: bool = False) -> pd.DataFrame:
    """HR@10 on the sequential task, mean over seeds and the users that the beam was asked for: a row a method.

    Columns method, beam, score; the beam answers the profile's first wording.
    """
    rule = RULE if RULE in params.evaluation.histories else "kept"
    rows = []
    for method in [m for m in methods(params) if m in params.methods]:
        found: dict[str, list[float]] = {"beam": [], "score": []}
        for seed in params.report_seeds:
            beam = openp5.evaluation(params, seed, method, build=build)
            scored = ranking(params, seed, method, build=build)
            with np.load(beam.path("tops.npz")) as asked, np.load(scored.path("tops.npz")) as everybody:
                among = np.isin(everybody["users"], asked["users"])
            found["beam"].append(per_user_metrics(beam, TASK, params.evaluation.prompts[0], rule)["HR@10"].mean())
            found["score"].append(per_user(params, seed, method, rule)["HR@10"][among].mean())
        rows.append((method, *(float(np.mean(found[readout])) for readout in ("beam", "score"))))
    return pd.DataFrame(rows, columns=["method", "beam", "score"])


def result_rows(params: Params, names: Sequence[str], *, variant: str = "", build: bool = False) -> pd.DataFrame:
    """Rankings of methods over the report's seeds as rows of `results.csv`.

    Args:
        variant: what differs from the profile, e.g. "context=last".
    """
    rows = []
    for seed in params.report_seeds:
        for method in names:
            readout = "" if METHODS[method].encoder is None else "score"
            for rule in RULES_OF_HISTORY:
                found = per_user(params, seed, method, rule, build=build)
                key = (TABLE, params.data.name, TASK, "", rule, readout, method, variant, seed)
                rows += [(*key, m, float(found[m].mean()), len(found[m])) for m in RANKING_METRICS]
    return pd.DataFrame(rows, columns=list(RESULT_COLUMNS))


def scoring_claims(params: Params, *, build: bool = False) -> list[Claim]:
    """Whether ILM beats what it is compared with once all items are scored, by `RULES`."""
    if "ILM" not in methods(params):
        return [not_tested(sentence, "–", "needs the methods ILM") for sentence in SCORING_CLAIMS.values()]
    value = lambda p, m="ILM": by_user(p, m, build=build)["HR@10"]
    ours, off = value(params), value(params.with_(**LLM_OFF))
    pairs = {"LLM off": (ours, off)} | {n: (ours, value(params, n)) for n in ("SASRec", *methods(params))}
    pairs["MLP-N"] = pairs[equal_mlp(params)]
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
                len(params.report_seeds),
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
        metrics = [run[metric].mean() for metric in ("HR@10", "NDCG@10") for run in found]
        table.append((head, *metrics, paired_bootstrap(*(run["HR@10"] for run in found)).p_value))
    names = [f"{metric}, LLM {state}" for metric in ("HR@10", "NDCG@10") for state in ("on", "off")]
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
