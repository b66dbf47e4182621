"""The claims of sections 4.4 and 5, tested on the runs of one profile by rules written down before them (`RULES`)."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp

from ilm_lib import study, study_openp5
from ilm_lib.ledger import Claim, verdict
from ilm_lib.metrics import holm, paired_bootstrap
from ilm_lib.paper import PAPER, PAPER_TABLE2, RANKING_METRICS
from ilm_lib.params import METHODS, Params

RULES = """
* A difference is *ours minus theirs*, averaged over seeds and over the two tasks of a user; its interval and two-sided
  p-value come from a bootstrap over users (10,000 draws, pairs kept together).
* **reproduced**: the difference has the paper's direction and p < .05 after Holm's correction for all cells that were
  compared in its family. **not reproduced**: the interval lies wholly on the other side. **inconclusive**: anything
  else; too few users and no effect look the same. **not tested**: no run here bears on it.
* A claim that something does *not* help is reproduced when the interval of the gain stays within a tenth of the
  baseline's value on either side, not reproduced when the gain is significant, else inconclusive.
* Comparisons take the paper's reading: HR@10, seen prompts, both tasks together, the history kept in the ranking.
* Checkpoints, numbers of tokens and settings are chosen on dev; a test item is looked at once.
"""
NONE = float("nan")
_HELPS = {"Toy", "ML100K", "ML1M"}  # films: scarce texts, rich interactions (section 5.1)


def cells(params: Params, a: str = "ILM", history: str = "kept", *, build: bool = False) -> pd.DataFrame:
    """Method `a` against every other one in every cell of Table 3: a row a baseline, prompt and metric.

    Columns baseline, prompt, metric, ours, theirs, diff, low, high, p, and "p corrected" for all rows (Holm).
    """
    others = [*study_openp5.BASELINES, *(m for m in ("OpenP5-R", "MLP", "ILM-rand") if m in params.methods)]
    rows = []
    for prompt in params.evaluation.prompts:
        ours = study_openp5.by_user(params, a, prompt, history, build=build)
        for other in others:
            theirs = study_openp5.by_user(params, other, prompt, history, build=build)
            rows += [(other, prompt, m, ours[m].mean(), theirs[m].mean(), *paired_bootstrap(ours[m], theirs[m]))
                     for m in RANKING_METRICS]
    out = pd.DataFrame(rows, columns=["baseline", "prompt", "metric", "ours", "theirs", "diff", "low", "high", "p"])
    return out.assign(**{"p corrected": holm(out["p"].to_numpy())})


def cells_table(table: pd.DataFrame) -> pd.DataFrame:
    """`cells` as text for `show`: a row a baseline and prompt, in every column the difference and its corrected p."""
    text = [f"{r['diff']:+.4f}, p {'< .001' if r['p corrected'] < 0.001 else format(r['p corrected'], '.3f')}"
            for r in table.to_dict("records")]
    wide = table.assign(text=text).pivot(index=["baseline", "prompt"], columns="metric", values="text")
    order = table[["baseline", "prompt"]].drop_duplicates().sort_values("prompt", kind="stable")
    wide = wide.loc[pd.MultiIndex.from_frame(order), list(RANKING_METRICS)]
    return wide.add_prefix("Δ ").reset_index()  # no metric's name: `show` would mark the best of a column


def ledger(params: Params) -> list[Claim]:
    """Every claim this profile's runs can speak of, and the others as not tested."""
    return [*_against_baselines(params), *_interaction_losses(params), *_text_gap(params), *_tokens(params),
            _frozen(params), _table2(params)]


def _published(params: Params, a: str, b: str, table: str = "table3") -> str:
    rows = PAPER[(PAPER["table"] == table) & (PAPER["prompt"] == "seen") & (PAPER["metric"] == "HR@10")]
    own = rows[rows["dataset"] == params.data.name]
    rows = own if len(own) else rows[rows["dataset"] == "ML1M"]
    value = rows.set_index("method")["value"]
    return f"{rows['dataset'].iloc[0]} {value[a]:.4f} against {value[b]:.4f}"


def _where(params: Params, what: str = "HR@10, seen, both tasks, history kept") -> str:
    return f"notebook 06, {params.data.name}, {what}"


def _against_baselines(params: Params) -> list[Claim]:
    table = cells(params, build=True)
    table = table[~table["baseline"].isin(study_openp5.BASELINES)]
    table = table.assign(**{"p corrected": holm(table["p"].to_numpy())})
    sentences = {"OpenP5-R": "ILM beats OpenP5-R: the frozen LLM gains from CF tokens",
                 "MLP": "ILM beats the MLP adapter",
                 "ILM-rand": "ILM beats ILM-rand: phase 1 matters"}
    claims = []
    for row in table[(table["prompt"] == "seen") & (table["metric"] == "HR@10")].to_dict("records"):
        won = int((table[table["baseline"] == row["baseline"]]["diff"] > 0).sum())
        of = int((table["baseline"] == row["baseline"]).sum())
        claims.append(Claim(
            sentences[row["baseline"]], _published(params, "ILM", row["baseline"]),
            f"{row['ours']:.4f} against {row['theirs']:.4f}; ahead in {won} of {of} cells", row["low"], row["high"],
            row["p corrected"], len(params.report_seeds),
            verdict(row["diff"], row["low"], row["high"], row["p corrected"]), _where(params)))
    return claims


def _interaction_losses(params: Params) -> list[Claim]:
    help_here = params.data.name in _HELPS
    claims, names = [], {"ILM-IT-II": "item-item", "ILM-IT-UI": "user-item"}
    base = "ILM-IT"
    kind = "help where texts are scarce (ML1M)" if help_here else "bring no obvious gain where texts are rich"
    if not {base, *names} <= set(params.methods):
        return [Claim(f"Interaction losses {kind}", "Table 4", "–", NONE, NONE, NONE, 0, "not tested",
                      "needs the methods ILM-IT, ILM-IT-II and ILM-IT-UI")]
    without = study_openp5.by_user(params, base, "seen", "kept", build=True)["HR@10"]
    found = {m: (study_openp5.by_user(params, m, "seen", "kept", build=True)["HR@10"]) for m in names}
    tests = {m: paired_bootstrap(v, without) for m, v in found.items()}
    corrected = dict(zip(tests, holm(np.array([t.p_value for t in tests.values()]))))
    for m, test in tests.items():
        judged = (verdict(test.diff, test.ci_low, test.ci_high, corrected[m]) if help_here else
                  no_gain(test.ci_low, test.ci_high, corrected[m], 0.1 * float(without.mean())))
        claims.append(Claim(f"The {names[m]} loss {kind.replace('help', 'helps').replace('bring', 'brings')}",
                            _published(params, m, base, "table4"),
                            f"{found[m].mean():.4f} against {without.mean():.4f}", test.ci_low, test.ci_high,
                            corrected[m], len(params.report_seeds), judged, _where(params)))
    return claims


def no_gain(low: float, high: float, p_value: float, margin: float) -> str:
    """Verdict on "no gain": the interval (low, high) within the margin on either side of 0."""
    if low > 0 and p_value < 0.05:
        return "not reproduced"
    return "reproduced" if -margin < low and high < margin else "inconclusive"


def text_gap(params: Params, methods: Sequence[str] = ("ILM-IT", "ILM-IT-II", "ILM-IT-UI")) -> pd.DataFrame:
    """ITG losses of phase 1 over steps: columns method, seed, step, value, split."""
    parts = []
    for m in methods:
        for s in params.report_seeds:
            history = pd.read_parquet(study.phase1(params, s, m, build=True)("history.parquet"))
            parts.append(history[history["name"] == "itg"].assign(method=m, seed=s))
    return pd.concat(parts)


def final_gap(history: pd.DataFrame) -> pd.DataFrame:
    """The last train and held-out loss, and their difference, of every method and seed of `text_gap`."""
    last = history.sort_values("step").groupby(["method", "seed", "split"])["value"].last().unstack("split")
    return last.assign(gap=last["heldout"] - last["train"])


def _text_gap(params: Params) -> list[Claim]:
    sentence = "The {} loss closes the gap between train and held-out text generation"
    names = {"ILM-IT-II": "item-item", "ILM-IT-UI": "user-item"}
    if len(params.report_seeds) < 2 or not {"ILM-IT", *names} <= set(params.methods):
        return [Claim(sentence.format("interaction"), "Figure 5", "–", NONE, NONE, NONE, 0, "not tested",
                      "needs the methods ILM-IT, ILM-IT-II and ILM-IT-UI and two seeds")]
    gap = final_gap(text_gap(params))["gap"].unstack("method")
    tests = {m: ttest_1samp(gap["ILM-IT"] - gap[m], 0) for m in names}
    corrected = dict(zip(tests, holm(np.array([t.pvalue for t in tests.values()]))))
    claims = []
    for m, test in tests.items():
        low, high = test.confidence_interval()
        diff = float((gap["ILM-IT"] - gap[m]).mean())
        claims.append(Claim(sentence.format(names[m]), "Figure 5", f"gap {gap[m].mean():.3f} against "
                            f"{gap['ILM-IT'].mean():.3f} nats", float(low), float(high), float(corrected[m]), len(gap),
                            verdict(diff, low, high, corrected[m]),
                            f"notebook 07, {params.data.name}, t-test over seeds"))
    return claims


def _tokens(params: Params) -> list[Claim]:
    lengths, seeds = sorted(params.ablations.query_tokens), params.ablations.seeds
    where = f"notebook 07, figure 3, {params.data.name}, history kept"
    score = {(m, n): _tokens_by_user(params, m, n) for m in ("ILM", "MLP") for n in lengths}
    mean = lambda m: np.mean([score[m, n] for n in lengths], 0)
    test = paired_bootstrap(mean("ILM"), mean("MLP"))
    ahead = sum(score["ILM", n].mean() > score["MLP", n].mean() for n in lengths)
    claims = [Claim("At most numbers of tokens ILM is ahead of an MLP with as many", "Figure 3",
                    f"ahead at {ahead} of {len(lengths)}; {mean('ILM').mean():.4f} against {mean('MLP').mean():.4f}",
                    test.ci_low, test.ci_high, test.p_value, seeds,
                    verdict(test.diff, test.ci_low, test.ci_high, test.p_value), where)]
    sentence = "More query tokens first help, then hurt"
    if max(lengths) < 32:
        why = "needs lengths up to 32"
        return [*claims, Claim(sentence, "Figure 3", "–", NONE, NONE, NONE, 0, "not tested", why)]
    dev = {n: np.mean([study_openp5.dev_score(study_openp5.with_tokens(params, n), s, "ILM")["dev NDCG@10"]
                       for s in range(seeds)]) for n in lengths[1:-1]}
    best = max(dev, key=dev.get)
    ends = [paired_bootstrap(score["ILM", best], score["ILM", end]) for end in (lengths[0], lengths[-1])]
    weaker = min(ends, key=lambda t: t.diff)
    p = float(holm(np.array([t.p_value for t in ends])).max())
    ours = " / ".join(f"{score['ILM', n].mean():.4f}" for n in (lengths[0], best, lengths[-1]))
    return [*claims, Claim(sentence, "Figure 3", f"{ours} with {lengths[0]} / {best} / {lengths[-1]}", weaker.ci_low,
                           weaker.ci_high, p, seeds, verdict(weaker.diff, weaker.ci_low, weaker.ci_high, p), where)]


def _tokens_by_user(params: Params, method: str, tokens: int) -> np.ndarray:
    short = study_openp5.with_tokens(params, tokens).with_(seeds=tuple(range(params.ablations.seeds)))
    return study_openp5.by_user(short, method, "seen", "kept", build=True)["HR@10"]


def _frozen(params: Params) -> Claim:
    runs = [(s, m) for s in params.report_seeds for m in params.methods if METHODS[m].encoder != "none"]
    facts = [json.loads(study.phase2(params, s, m)("encoder.json").read_text(encoding="utf-8")) for s, m in runs]
    equal = sum(f["llm_before"] == f["llm_after"] for f in facts)
    return Claim("The LLM stays exactly as it was", "by construction", f"{equal} of {len(facts)} SHA-256 equal", NONE,
                 NONE, NONE, len(params.report_seeds), "reproduced" if equal == len(facts) else "not reproduced",
                 "notebook 04, SHA-256 of all weights")


def _table2(params: Params) -> Claim:
    paper = PAPER_TABLE2[PAPER_TABLE2["dataset"] == params.data.name]
    sentence, loaded = "The data sets have the counts of Table 2", study.dataset(params)
    ours = {"users": loaded.num_users, "items": loaded.num_items, "train": 20 * loaded.num_train_examples,
            "test": 2 * loaded.num_users}
    said = ", ".join(f"{n} {v:,}" for n, v in ours.items())
    if paper.empty:
        return Claim(sentence, "–", said, NONE, NONE, NONE, 0, "not tested", "not a data set of the paper")
    theirs = paper.iloc[0]
    differ = [n for n, v in ours.items() if v != theirs[n]]
    return Claim(sentence, ", ".join(f"{n} {theirs[n]:,}" for n in ours), said, NONE, NONE, NONE, 0,
                 "not reproduced" if differ else "reproduced",
                 "notebook 01" + (f"; {', '.join(differ)} differ" if differ else ""))
