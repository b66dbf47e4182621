"""The claims of sections 4.3, 4.4 and 5, tested on the runs of one profile by rules written down before them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp

from ilm_lib.methods import METHODS
from ilm_lib.metrics import PairedDifference, holm, paired_bootstrap
from ilm_lib.paper import ELM_CLAIMS, OPENP5_CLAIMS, PAPER, PAPER_TABLE2, table2_counts
from ilm_lib.report.results import Claim
from ilm_lib.report.verdicts import RULES as RULES  # notebooks show them beside the claims
from ilm_lib.report.verdicts import no_gain, no_gain_reason, reason, verdict
from ilm_lib.settings import Params
from ilm_lib.study import comparisons, elm_results, inputs, openp5, openp5_results, stages

BASELINES = ("OpenP5-R", "MLP", "ILM-rand")  # that sections 4.3 and 4.4 compare ILM with
TEXT_LOSS, INTERACTION_LOSSES = "ILM-IT", {"ILM-IT-II": "item-item", "ILM-IT-UI": "user-item"}
_HELPS = {"Toy", "ML100K", "ML1M"}  # films: scarce texts, rich interactions (section 5.1)


def openp5_claims(params: Params) -> list[Claim]:
    """Every claim this profile's runs can speak of, and the others as not tested."""
    return [
        *against_baselines(params),
        *_interaction_losses(params),
        *_text_gap(params),
        *_tokens(params),
        _frozen(params),
        _table2(params),
    ]


def elm_claims(params: Params) -> list[Claim]:
    """What section 4.3 claims, on the log perplexity of the test films' texts."""
    sentences = {m: sentence for m, sentence in ELM_CLAIMS.items() if {m, "ILM"} <= set(params.methods)}
    others = [not_tested(s, "Table 1", _compares("ILM", m)) for m, s in ELM_CLAIMS.items() if m not in sentences]
    if not sentences:
        return others
    films = {m: elm_results.by_film(params, m)["log_pplx"].to_numpy() for m in (*sentences, "Film-blind", "ILM")}
    tests = {m: paired_bootstrap(films[m], films["ILM"]) for m in films if m != "ILM"}
    corrected = corrected_for_all({m: t.p_value for m, t in tests.items()})
    blind, blind_why = judge(tests["Film-blind"], corrected["Film-blind"], len(tests), drawn_over="films")
    results = elm_results.all_result_rows(params, list(films))
    value = results[results["metric"] == "log_pplx"].groupby(["task", "method"])["value"].mean().unstack()
    paper = PAPER[(PAPER["table"] == "table1") & (PAPER["metric"] == "log_pplx") & (PAPER["task"] == "all")]
    paper = paper.set_index("method")["value"]
    where = f"notebook 05, {params.data.name}, log perplexity (lower is better), {len(films['ILM'])} test films"
    claims = []
    for m, sentence in sentences.items():
        test, all_tasks, ahead = tests[m], value.loc["all"], (value[m] > value["ILM"]).drop("all")
        judged, why = judge(test, corrected[m], len(tests), drawn_over="films")
        if judged == "reproduced" and blind != "reproduced":
            judged, why = "inconclusive", f"ILM does not beat Film-blind, which knows no film: {blind_why}"
        claims.append(
            Claim(
                sentence,
                f"{paper['ILM']:.4f} against {paper[m]:.4f} nats",
                f"{all_tasks['ILM']:.4f} against {all_tasks[m]:.4f} (Film-blind {all_tasks['Film-blind']:.4f}); "
                f"ahead in {ahead.sum()} of {len(ahead)}",
                test.ci_low,
                test.ci_high,
                corrected[m],
                len(params.report_seeds),
                judged,
                where,
                why,
            )
        )
    return [*claims, *others]


def without_test(sentence: str, paper: str, ours: str, judged: str, evidence: str, why: str, seeds: int = 0) -> Claim:
    """A claim that is counted or compared and not tested: it has no interval and no p-value."""
    nan = float("nan")
    return Claim(sentence, paper, ours, nan, nan, nan, seeds, judged, evidence, why)


def not_tested(sentence: str, paper: str, why: str, ours: str = "–") -> Claim:
    """A claim that no run of the profile bears on."""
    return without_test(sentence, paper, ours, "not tested", "–", why)


def judge(test: PairedDifference, p_value: float, comparisons: int = 1, **words: str) -> tuple[str, str]:
    """Verdict and reason; p is corrected for so many comparisons, and `words` are those of `verdicts.reason`."""
    numbers = test.diff, test.ci_low, test.ci_high, p_value
    return verdict(*numbers), reason(*numbers, comparisons=comparisons, **words)


def _published(params: Params, a: str, b: str, table: str = "table3") -> str:
    rows = PAPER[(PAPER["table"] == table) & (PAPER["prompt"] == "seen") & (PAPER["metric"] == "HR@10")]
    own = rows[rows["dataset"] == params.data.name]
    rows = own if len(own) else rows[rows["dataset"] == "ML1M"]
    value = rows.set_index("method")["value"]
    return f"{rows['dataset'].iloc[0]} {value[a]:.4f} against {value[b]:.4f}"


def _where(params: Params) -> str:
    return f"notebook 06, {params.data.name}, HR@10, seen, both tasks, history kept"


def corrected_for_all(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for each other (Holm)."""
    return dict(zip(p_values, holm(np.array(list(p_values.values()))).tolist()))


def against_baselines(params: Params) -> list[Claim]:
    """That ILM beats each other method over the frozen LLM, in the order of `BASELINES`."""
    claims = {m: not_tested(OPENP5_CLAIMS[m], "Table 3", _compares("ILM", m)) for m in BASELINES}
    tested = [m for m in BASELINES if {m, "ILM"} <= set(params.methods)]
    table = comparisons.cells(params, tested, build=True) if tested else pd.DataFrame(columns=["prompt", "metric"])
    for row in table[(table["prompt"] == "seen") & (table["metric"] == "HR@10")].to_dict("records"):
        ahead = table.loc[table["baseline"] == row["baseline"], "diff"] > 0
        numbers = row["diff"], row["low"], row["high"], row["p corrected"]
        claims[row["baseline"]] = Claim(
            OPENP5_CLAIMS[row["baseline"]],
            _published(params, "ILM", row["baseline"]),
            f"{row['ours']:.4f} against {row['theirs']:.4f}; ahead in {ahead.sum()} of {len(ahead)} cells",
            row["low"],
            row["high"],
            row["p corrected"],
            len(params.report_seeds),
            verdict(*numbers),
            _where(params),
            reason(*numbers, comparisons=len(table)),
        )
    return list(claims.values())


def _interaction_losses(params: Params) -> list[Claim]:
    helps = params.data.name in _HELPS
    kind = "helps" if helps else "no gain"
    sentences = {m: OPENP5_CLAIMS[f"{name} {kind}"] for m, name in INTERACTION_LOSSES.items()}
    if not {TEXT_LOSS, *INTERACTION_LOSSES} <= set(params.methods):
        return [not_tested(sentence, "Table 4", _needs()) for sentence in sentences.values()]
    value = {m: openp5_results.by_user(params, m, "seen", "kept", build=True)["HR@10"] for m in (TEXT_LOSS, *sentences)}
    without = value[TEXT_LOSS]
    tests = {m: paired_bootstrap(value[m], without) for m in sentences}
    corrected = corrected_for_all({m: t.p_value for m, t in tests.items()})
    claims = []
    for m, test in tests.items():
        if helps:
            judged, why = judge(test, corrected[m], len(tests))
        else:
            numbers = test.ci_low, test.ci_high, corrected[m], 0.1 * float(without.mean())
            judged, why = no_gain(*numbers), no_gain_reason(*numbers)
        claims.append(
            Claim(
                sentences[m],
                _published(params, m, TEXT_LOSS, "table4"),
                f"{value[m].mean():.4f} against {without.mean():.4f}",
                test.ci_low,
                test.ci_high,
                corrected[m],
                len(params.report_seeds),
                judged,
                _where(params),
                why,
            )
        )
    return claims


def _needs() -> str:
    return _compares(TEXT_LOSS, *INTERACTION_LOSSES)


def _compares(*methods: str) -> str:
    return f"needs the methods {', '.join(methods)}"


def text_gap(params: Params, methods: Sequence[str] = (TEXT_LOSS, *INTERACTION_LOSSES)) -> pd.DataFrame:
    """ITG losses of phase 1 over steps: columns method, seed, step, value, split."""
    parts = []
    for m in methods:
        for s in params.report_seeds:
            history = pd.read_parquet(stages.phase1(params, s, m, build=True).path("log.parquet"))
            parts.append(history[history["name"] == "itg"].assign(method=m, seed=s))
    return pd.concat(parts) if parts else pd.DataFrame(columns=["step", "name", "value", "split", "method", "seed"])


def final_gap(history: pd.DataFrame) -> pd.DataFrame:
    """The last train and held-out loss, and their difference, of every method and seed of `text_gap`."""
    last = history.sort_values("step").groupby(["method", "seed", "split"])["value"].last().unstack("split")
    return last.assign(gap=last["heldout"] - last["train"])


def _text_gap(params: Params) -> list[Claim]:
    sentences = {m: OPENP5_CLAIMS[f"{name} gap"] for m, name in INTERACTION_LOSSES.items()}
    if len(params.report_seeds) < 2 or not {TEXT_LOSS, *sentences} <= set(params.methods):
        return [not_tested(sentence, "Figure 5", f"{_needs()} and two seeds") for sentence in sentences.values()]
    gap = final_gap(text_gap(params))["gap"].unstack("method")
    tests = {m: ttest_1samp(gap[TEXT_LOSS] - gap[m], 0) for m in sentences}
    corrected = corrected_for_all({m: t.pvalue for m, t in tests.items()})
    claims = []
    for m, test in tests.items():
        low, high = map(float, test.confidence_interval())
        numbers = float((gap[TEXT_LOSS] - gap[m]).mean()), low, high, float(corrected[m])
        claims.append(
            Claim(
                sentences[m],
                "Figure 5",
                f"gap {gap[m].mean():.3f} against {gap[TEXT_LOSS].mean():.3f} nats",
                low,
                high,
                corrected[m],
                len(gap),
                verdict(*numbers),
                f"notebook 07, {params.data.name}, t-test over seeds",
                reason(*numbers, comparisons=len(tests), drawn_over="seeds"),
            )
        )
    return claims


def _tokens(params: Params) -> list[Claim]:
    lengths, seeds = sorted(params.ablations.query_tokens), params.ablations.seeds
    where = f"notebook 07, figure 3, {params.data.name}, history kept"
    if not {"ILM", "MLP"} <= set(params.methods):
        names = "as many tokens", "more tokens"
        return [not_tested(OPENP5_CLAIMS[name], "Figure 3", _compares("ILM", "MLP")) for name in names]
    score = {(m, n): _tokens_by_user(params, m, n) for m in ("ILM", "MLP") for n in lengths}
    mean = lambda m: np.mean([score[m, n] for n in lengths], 0)
    test = paired_bootstrap(mean("ILM"), mean("MLP"))
    judged, why = judge(test, test.p_value)
    ahead = sum(score["ILM", n].mean() > score["MLP", n].mean() for n in lengths)
    claims = [
        Claim(
            OPENP5_CLAIMS["as many tokens"],
            "Figure 3",
            f"ahead at {ahead} of {len(lengths)}; {mean('ILM').mean():.4f} against {mean('MLP').mean():.4f}",
            test.ci_low,
            test.ci_high,
            test.p_value,
            seeds,
            judged,
            where,
            why,
        )
    ]
    sentence = OPENP5_CLAIMS["more tokens"]
    if max(lengths) < 32:
        return [*claims, not_tested(sentence, "Figure 3", "needs lengths up to 32")]
    dev = {
        n: np.mean(
            [openp5_results.dev_score(openp5.with_tokens(params, n), s, "ILM")["dev NDCG@10"] for s in range(seeds)]
        )
        for n in lengths[1:-1]
    }
    best = max(dev, key=dev.get)
    ends = [paired_bootstrap(score["ILM", best], score["ILM", end]) for end in (lengths[0], lengths[-1])]
    weaker = min(ends, key=lambda t: t.diff)
    p = float(holm(np.array([t.p_value for t in ends])).max())
    judged, why = judge(weaker, p, len(ends))
    ours = " / ".join(f"{score['ILM', n].mean():.4f}" for n in (lengths[0], best, lengths[-1]))
    return [
        *claims,
        Claim(
            sentence,
            "Figure 3",
            f"{ours} with {lengths[0]} / {best} / {lengths[-1]}",
            weaker.ci_low,
            weaker.ci_high,
            p,
            seeds,
            judged,
            where,
            f"best number of tokens against the closer of the two ends: {why}",
        ),
    ]


def _tokens_by_user(params: Params, method: str, tokens: int) -> np.ndarray:
    short = openp5.with_tokens(params, tokens).with_(seeds=tuple(range(params.ablations.seeds)))
    return openp5_results.by_user(short, method, "seen", "kept", build=True)["HR@10"]


def _frozen(params: Params) -> Claim:
    runs = [(s, m) for s in params.report_seeds for m in params.methods if METHODS[m].encoder != "none"]
    if not runs:
        return not_tested(OPENP5_CLAIMS["frozen"], "by construction", "needs a method that trains an encoder")
    facts = [json.loads(stages.phase2(params, s, m).path("encoder.json").read_text(encoding="utf-8")) for s, m in runs]
    equal = sum(f["llm_before"] == f["llm_after"] for f in facts)
    return without_test(
        OPENP5_CLAIMS["frozen"],
        "by construction",
        f"{equal} of {len(facts)} SHA-256 equal",
        "reproduced" if equal == len(facts) else "not reproduced",
        "notebook 04, SHA-256 of all weights",
        f"counted: {equal} of {len(facts)} are equal before and after phase 2",
        len(params.report_seeds),
    )


def _table2(params: Params) -> Claim:
    paper = PAPER_TABLE2[PAPER_TABLE2["dataset"] == params.data.name]
    sentence, loaded = OPENP5_CLAIMS["table2"], inputs.dataset(params)
    ours = table2_counts(loaded.num_users, loaded.num_items, loaded.num_interactions)
    said = ", ".join(f"{n} {v:,}" for n, v in ours.items())
    if paper.empty:
        return not_tested(sentence, "–", "not a data set of the paper", said)
    if params.data.split != "leave_one_out" or params.data.cold_items:
        return not_tested(sentence, "–", "not the split of the paper", said)
    theirs = paper.iloc[0]
    differ = [n for n, v in ours.items() if v != theirs[n]]
    return without_test(
        sentence,
        ", ".join(f"{n} {theirs[n]:,}" for n in ours),
        said,
        "not reproduced" if differ else "reproduced",
        "notebook 01",
        f"counted: {', '.join(differ)} differ" if differ else "counted: all are equal",
    )
