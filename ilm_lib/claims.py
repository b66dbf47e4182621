"""The claims of sections 4.4 and 5, tested on the runs of one profile by rules written down before them (`RULES`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp

from ilm_lib import study, study_elm, study_openp5
from ilm_lib.ledger import Claim, verdict
from ilm_lib.metrics import PairedDifference, holm, paired_bootstrap
from ilm_lib.paper import PAPER, PAPER_TABLE2, RANKING_METRICS, table2_counts
from ilm_lib.params import METHODS, Params
from ilm_lib.recommendation import TASKS

RULES = """
* A difference is *ours minus theirs*, averaged over seeds and over the two tasks of a user; its interval and two-sided
  p-value come from a bootstrap over users (10,000 draws, pairs kept together).
* **reproduced**: the difference has the paper's direction and p < .05 after Holm's correction for all cells that were
  compared in its family. **not reproduced**: the interval lies wholly on the other side. **inconclusive**: anything
  else; too few users and no effect look the same. **not tested**: no run here bears on it.
* A claim that something does *not* help is reproduced when the interval of the gain stays within a tenth of the
  baseline's value on either side, not reproduced when the gain is significant, else inconclusive.
* Comparisons take the paper's reading: HR@10, seen prompts, both tasks together, the history kept in the ranking.
* On the ELM tasks the difference is *theirs minus ours* in log perplexity, of a film's mean over its rows, and the
  bootstrap draws test films. A gain counts only if ILM beats Film-blind, too (p < .05): what comes without knowing the
  film says nothing of the embedding, and the claim is inconclusive.
* Checkpoints, numbers of tokens and settings are chosen on dev; a test item is looked at once.
"""
BASELINES = {"OpenP5-R": "ILM beats OpenP5-R: the frozen LLM gains from CF tokens",
             "MLP": "ILM beats the MLP adapter",
             "ILM-rand": "ILM beats ILM-rand: phase 1 matters"}
TEXT_LOSS, INTERACTION_LOSSES = "ILM-IT", {"ILM-IT-II": "item-item", "ILM-IT-UI": "user-item"}
_HELPS = {"Toy", "ML100K", "ML1M"}  # films: scarce texts, rich interactions (section 5.1)


def cells(params: Params, baselines: Sequence[str], history: str = "kept", *, build: bool = False) -> pd.DataFrame:
    """ILM against baselines in every cell of Table 3: a row a baseline, prompt and metric.

    Columns baseline, prompt, metric, ours, theirs, diff, low, high, p, and "p corrected" for all rows (Holm).
    """
    rows = []
    for prompt in params.evaluation.prompts:
        ours = study_openp5.by_user(params, "ILM", prompt, history, build=build)
        for other in baselines:
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


def gain_by_task(params: Params) -> pd.DataFrame:
    """HR@10 of ILM and of the LLM without it, seen prompts: a row a task and history rule.

    Columns task, history, ILM, OpenP5-R, ratio, diff, low, high, p (bootstrap over users).
    """
    rows = []
    for task in TASKS:
        for history in params.evaluation.histories:
            ours, theirs = (study_openp5.by_user(params, m, "seen", history, task)["HR@10"] for m in ("ILM", "OpenP5-R"))
            means = ours.mean(), theirs.mean()
            rows.append((task, history, *means, means[0] / means[1], *paired_bootstrap(ours, theirs)))
    return pd.DataFrame(rows, columns=["task", "history", "ILM", "OpenP5-R", "ratio", "diff", "low", "high", "p"])


def gain_by_reading(params: Params, *, build: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Results over LLMs that were frozen earlier or later (`ablations.backbone_steps`), with the profile's seed alone.

    Returns:
        rows of `results.csv`, table "prompts read"; and `gain_by_task` over each LLM, with a column "prompts": how many
        about a user it has read.
    """
    params, rows, gains = params.with_(seeds=(params.seed,)), [], []
    for steps in params.ablations.backbone_steps:
        other = study_openp5.beside(params, "backbone.steps", steps)
        read = study_openp5.prompts_read(other)
        for m in [m for m in ("OpenP5-R", "MLP", "ILM") if m in params.methods]:
            found = study_openp5.result_rows(other, study_openp5.evaluation(other, params.seed, m, build=build), m,
                                             params.seed, "prompts read")
            found = found[(found["prompt"] == "seen") & found["task"].isin(TASKS)]
            rows.append(found.assign(task=found["task"] + f", {read} a user"))
        own = gain_by_task(other)
        own.insert(2, "prompts", read)
        gains.append(own)
    return pd.concat(rows), pd.concat(gains).sort_values(["task", "history", "prompts"], ignore_index=True)


def ledger(params: Params) -> list[Claim]:
    """Every claim this profile's runs can speak of, and the others as not tested."""
    return [*_against_baselines(params), *_interaction_losses(params), *_text_gap(params), *_tokens(params),
            _frozen(params), _table2(params)]


def elm_ledger(params: Params) -> list[Claim]:
    """What section 4.3 claims, on the log perplexity of the test films' texts."""
    sentences = {"MLP": "On the ELM tasks ILM beats the MLP adapter",
                 "ILM-rand": "On the ELM tasks ILM beats ILM-rand: phase 1 matters"}
    sentences = {m: sentence for m, sentence in sentences.items() if {m, "ILM"} <= set(params.methods)}
    if not sentences:
        return []
    films = {m: study_elm.by_film(params, m)["log_pplx"].to_numpy() for m in (*sentences, "Film-blind", "ILM")}
    tests = {m: paired_bootstrap(films[m], films["ILM"]) for m in films if m != "ILM"}
    corrected = _corrected({m: t.p_value for m, t in tests.items()})
    blind = _judged(tests["Film-blind"], corrected["Film-blind"]) != "reproduced"
    results = pd.concat([study_elm.result_rows(study_elm.scored(study_elm.evaluation(params, s, m)), m, s)
                         for s in params.report_seeds for m in films])
    value = results[results["metric"] == "log_pplx"].groupby(["task", "method"])["value"].mean().unstack()
    paper = PAPER[(PAPER["table"] == "table1") & (PAPER["metric"] == "log_pplx") & (PAPER["task"] == "all")]
    paper = paper.set_index("method")["value"]
    where = f"notebook 05, {params.data.name}, log perplexity (lower is better), {len(films['ILM'])} test films"
    claims = []
    for m, sentence in sentences.items():
        test, all_tasks, ahead = tests[m], value.loc["all"], (value[m] > value["ILM"]).drop("all")
        judged = _judged(test, corrected[m])
        claims.append(Claim(
            sentence, f"{paper['ILM']:.4f} against {paper[m]:.4f} nats",
            f"{all_tasks['ILM']:.4f} against {all_tasks[m]:.4f} (Film-blind {all_tasks['Film-blind']:.4f}); "
            f"ahead in {ahead.sum()} of {len(ahead)}", test.ci_low, test.ci_high, corrected[m],
            len(params.report_seeds), "inconclusive" if blind and judged == "reproduced" else judged, where))
    return claims


def without_test(sentence: str, paper: str, ours: str, judged: str, evidence: str, seeds: int = 0) -> Claim:
    """A claim that is counted or compared and not tested: it has no interval and no p-value."""
    nan = float("nan")
    return Claim(sentence, paper, ours, nan, nan, nan, seeds, judged, evidence)


def not_tested(sentence: str, paper: str, why: str, ours: str = "–") -> Claim:
    """A claim that no run of the profile bears on."""
    return without_test(sentence, paper, ours, "not tested", why)


def _judged(test: PairedDifference, p_value: float) -> str:
    return verdict(test.diff, test.ci_low, test.ci_high, p_value)


def _published(params: Params, a: str, b: str, table: str = "table3") -> str:
    rows = PAPER[(PAPER["table"] == table) & (PAPER["prompt"] == "seen") & (PAPER["metric"] == "HR@10")]
    own = rows[rows["dataset"] == params.data.name]
    rows = own if len(own) else rows[rows["dataset"] == "ML1M"]
    value = rows.set_index("method")["value"]
    return f"{rows['dataset'].iloc[0]} {value[a]:.4f} against {value[b]:.4f}"


def _where(params: Params) -> str:
    return f"notebook 06, {params.data.name}, HR@10, seen, both tasks, history kept"


def _corrected(p_values: Mapping[str, float]) -> dict[str, float]:
    return dict(zip(p_values, holm(np.array(list(p_values.values()))).tolist()))


def _against_baselines(params: Params) -> list[Claim]:
    table = cells(params, [m for m in BASELINES if m in params.methods], build=True)
    claims = []
    for row in table[(table["prompt"] == "seen") & (table["metric"] == "HR@10")].to_dict("records"):
        ahead = table.loc[table["baseline"] == row["baseline"], "diff"] > 0
        claims.append(Claim(
            BASELINES[row["baseline"]], _published(params, "ILM", row["baseline"]),
            f"{row['ours']:.4f} against {row['theirs']:.4f}; ahead in {ahead.sum()} of {len(ahead)} cells", row["low"],
            row["high"], row["p corrected"], len(params.report_seeds),
            verdict(row["diff"], row["low"], row["high"], row["p corrected"]), _where(params)))
    return claims


def _interaction_losses(params: Params) -> list[Claim]:
    helps = params.data.name in _HELPS
    sentences = {m: f"The {name} loss " + ("helps where texts are scarce (ML1M)" if helps else
                                           "brings no obvious gain where texts are rich")
                 for m, name in INTERACTION_LOSSES.items()}
    if not {TEXT_LOSS, *INTERACTION_LOSSES} <= set(params.methods):
        return [not_tested(sentence, "Table 4", _needs()) for sentence in sentences.values()]
    value = {m: study_openp5.by_user(params, m, "seen", "kept", build=True)["HR@10"] for m in (TEXT_LOSS, *sentences)}
    without = value[TEXT_LOSS]
    tests = {m: paired_bootstrap(value[m], without) for m in sentences}
    corrected = _corrected({m: t.p_value for m, t in tests.items()})
    claims = []
    for m, test in tests.items():
        judged = (_judged(test, corrected[m]) if helps else
                  no_gain(test.ci_low, test.ci_high, corrected[m], 0.1 * float(without.mean())))
        claims.append(Claim(sentences[m], _published(params, m, TEXT_LOSS, "table4"),
                            f"{value[m].mean():.4f} against {without.mean():.4f}", test.ci_low, test.ci_high,
                            corrected[m], len(params.report_seeds), judged, _where(params)))
    return claims


def _needs() -> str:
    return f"needs the methods {', '.join((TEXT_LOSS, *INTERACTION_LOSSES))}"


def no_gain(low: float, high: float, p_value: float, margin: float) -> str:
    """Verdict on "no gain": the interval (low, high) within the margin on either side of 0."""
    if low > 0 and p_value < 0.05:
        return "not reproduced"
    return "reproduced" if -margin < low and high < margin else "inconclusive"


def text_gap(params: Params, methods: Sequence[str] = (TEXT_LOSS, *INTERACTION_LOSSES)) -> pd.DataFrame:
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
    sentences = {m: f"The {name} loss closes the gap between train and held-out text generation"
                 for m, name in INTERACTION_LOSSES.items()}
    if len(params.report_seeds) < 2 or not {TEXT_LOSS, *sentences} <= set(params.methods):
        return [not_tested(sentence, "Figure 5", f"{_needs()} and two seeds") for sentence in sentences.values()]
    gap = final_gap(text_gap(params))["gap"].unstack("method")
    tests = {m: ttest_1samp(gap[TEXT_LOSS] - gap[m], 0) for m in sentences}
    corrected = _corrected({m: t.pvalue for m, t in tests.items()})
    claims = []
    for m, test in tests.items():
        low, high = map(float, test.confidence_interval())
        diff = float((gap[TEXT_LOSS] - gap[m]).mean())
        claims.append(Claim(sentences[m], "Figure 5",
                            f"gap {gap[m].mean():.3f} against {gap[TEXT_LOSS].mean():.3f} nats", low, high,
                            corrected[m], len(gap), verdict(diff, low, high, corrected[m]),
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
                    _judged(test, test.p_value), where)]
    sentence = "More query tokens first help, then hurt"
    if max(lengths) < 32:
        return [*claims, not_tested(sentence, "Figure 3", "needs lengths up to 32")]
    dev = {n: np.mean([study_openp5.dev_score(study_openp5.with_tokens(params, n), s, "ILM")["dev NDCG@10"]
                       for s in range(seeds)]) for n in lengths[1:-1]}
    best = max(dev, key=dev.get)
    ends = [paired_bootstrap(score["ILM", best], score["ILM", end]) for end in (lengths[0], lengths[-1])]
    weaker = min(ends, key=lambda t: t.diff)
    p = float(holm(np.array([t.p_value for t in ends])).max())
    ours = " / ".join(f"{score['ILM', n].mean():.4f}" for n in (lengths[0], best, lengths[-1]))
    return [*claims, Claim(sentence, "Figure 3", f"{ours} with {lengths[0]} / {best} / {lengths[-1]}", weaker.ci_low,
                           weaker.ci_high, p, seeds, _judged(weaker, p), where)]


def _tokens_by_user(params: Params, method: str, tokens: int) -> np.ndarray:
    short = study_openp5.with_tokens(params, tokens).with_(seeds=tuple(range(params.ablations.seeds)))
    return study_openp5.by_user(short, method, "seen", "kept", build=True)["HR@10"]


def _frozen(params: Params) -> Claim:
    runs = [(s, m) for s in params.report_seeds for m in params.methods if METHODS[m].encoder != "none"]
    facts = [json.loads(study.phase2(params, s, m)("encoder.json").read_text(encoding="utf-8")) for s, m in runs]
    equal = sum(f["llm_before"] == f["llm_after"] for f in facts)
    return without_test("The LLM stays exactly as it was", "by construction",
                        f"{equal} of {len(facts)} SHA-256 equal",
                        "reproduced" if equal == len(facts) else "not reproduced",
                        "notebook 04, SHA-256 of all weights", len(params.report_seeds))


def _table2(params: Params) -> Claim:
    paper = PAPER_TABLE2[PAPER_TABLE2["dataset"] == params.data.name]
    sentence, loaded = "The data sets have the counts of Table 2", study.dataset(params)
    ours = table2_counts(loaded.num_users, loaded.num_items, loaded.num_interactions)
    said = ", ".join(f"{n} {v:,}" for n, v in ours.items())
    if paper.empty:
        return not_tested(sentence, "–", "not a data set of the paper", said)
    theirs = paper.iloc[0]
    differ = [n for n, v in ours.items() if v != theirs[n]]
    return without_test(sentence, ", ".join(f"{n} {theirs[n]:,}" for n in ours), said,
                        "not reproduced" if differ else "reproduced",
                        "notebook 01" + (f"; {', '.join(differ)} differ" if differ else ""))
