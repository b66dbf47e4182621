"""What simulated conversations show: who found a film after how many turns, rows of results.csv, and claims."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ilm_lib.methods import METHODS
from ilm_lib.metrics import FEWEST_PAIRS, paired_bootstrap
from ilm_lib.paper import CHAT_CLAIMS, RESULT_COLUMNS
from ilm_lib.report.results import Claim
from ilm_lib.settings import Params
from ilm_lib.study.claims import corrected_for_all, judge, not_tested
from ilm_lib.study.conversation import Told, success

TABLE, TASK, RULE = "conversation", "simulated", "excluded"
#: What `results.csv` calls a variant: what the model is told, and whether another seeker's words are.
VARIANTS: dict[str, tuple[Told, bool]] = {
    "": ("words and films", False),
    "told=words": ("words", False),
    "told=films": ("films", False),
    "told=another": ("words and films", True),
    "llm=off": ("words and films, LLM off", False),
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
* *Words alone*, *films alone* and *LLM off* are trained each by itself, in the same way. *Another seeker's words* are
  told to the model that was trained with both.
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
    """Rows of results.csv, success@t of every variant and seed."""
    rows = []
    for variant in VARIANTS:
        for seed in params.report_seeds:
            given = found(params, seed, variant, build=build)
            about = (TABLE, params.data.name, TASK, "", RULE, "", method_of(params), variant, seed)
            rows += [
                (*about, f"success@{turn}", round(float(value), 6), len(given))
                for turn, value in enumerate(given.mean(0), 1)
            ]
    return pd.DataFrame(rows, columns=list(RESULT_COLUMNS))


def table(results: pd.DataFrame) -> pd.DataFrame:
    """success@t of each variant, the mean over seeds."""
    means = results.pivot_table(index="variant", columns="metric", values="value", dropna=False)
    means = means.reindex(list(VARIANTS)).rename(index=NAMES).round(3)
    return means.rename_axis(index="told", columns=None).reset_index()


def chat_claims(params: Params, *, build: bool = False) -> list[Claim]:
    """Whether words, films and the LLM each help to find a film, by `RULES`."""
    last = {
        variant: np.mean([found(params, seed, variant, build=build)[:, -1] for seed in params.report_seeds], axis=0)
        for variant in VARIANTS
    }
    if len(last[""]) < FEWEST_PAIRS:
        why = f"needs {FEWEST_PAIRS} seekers"
        return [not_tested(sentence, "–", why) for sentence in CHAT_CLAIMS.values()]
    tests = {variant: paired_bootstrap(last[""], last[variant]) for variant in CHAT_CLAIMS}
    corrected = corrected_for_all({variant: test.p_value for variant, test in tests.items()})
    claims = []
    for variant, sentence in CHAT_CLAIMS.items():
        test = tests[variant]
        judged, why = judge(test, corrected[variant], len(tests), claimed_by="the claim")
        claims.append(
            Claim(
                sentence,
                "–",
                f"{last[''].mean():.3f} against {last[variant].mean():.3f}",
                test.ci_low,
                test.ci_high,
                corrected[variant],
                len(params.report_seeds),
                judged,
                f"notebook 11, {params.data.name}, success after {params.chat.turns} turns, {len(last['']):,} seekers",
                why,
            )
        )
    return claims
