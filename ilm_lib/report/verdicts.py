"""What a verdict on a claim means: the rules, written down before the runs, and each verdict's reason in words."""

from __future__ import annotations

import math

VERDICTS = ("reproduced", "not reproduced", "inconclusive", "not tested")
ALPHA = 0.05

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


def verdict(diff: float, ci_low: float, ci_high: float, p_value: float, alpha: float = ALPHA) -> str:
    """Verdict on "diff > 0", where `diff` is oriented so that the paper's direction is positive.

    "reproduced" if diff > 0 and p < alpha; "not reproduced" if diff < 0 and the interval lies wholly below 0; "not
    tested" if diff is NaN; else "inconclusive". An absent effect is thus never called refuted: too few users or seeds
    look just the same.

    Raises:
        ValueError: p or alpha is no probability, or the interval is upside down.
    """
    if p_value < 0 or p_value > 1 or not 0 < alpha < 1:
        raise ValueError(f"p_value and alpha are probabilities; got {p_value} and {alpha}")
    if ci_low > ci_high:
        raise ValueError(f"the interval is upside down: [{ci_low}, {ci_high}]")
    if math.isnan(diff):
        return "not tested"
    if diff > 0 and p_value < alpha:
        return "reproduced"
    return "not reproduced" if diff < 0 and ci_high < 0 else "inconclusive"


def reason(
    diff: float,
    ci_low: float,
    ci_high: float,
    p_value: float,
    *,
    comparisons: int = 1,
    drawn_over: str = "users",
    claimed_by: str = "the paper",
) -> str:
    """Why `verdict` says what it says, in words; the numbers are those given to it.

    Args:
        p_value: corrected for all `comparisons`.
        comparisons: how many p was corrected for; 1: it was not.
        drawn_over: what the interval was drawn over, "users", "films" or "seeds".
        claimed_by: whose direction it is.
    """
    judged = verdict(diff, ci_low, ci_high, p_value)
    p = "p < .001" if p_value < 0.001 else f"p = {_short(p_value, 3)}"
    corrected = f", corrected for {comparisons} comparisons" if comparisons > 1 else ""
    if judged == "not tested":
        return "there is nothing to compare"
    if judged == "reproduced":
        return f"{claimed_by}'s direction, {p}{corrected}"
    if judged == "not reproduced":
        other = "the whole interval lies on the other side of 0"
        but = f"; {p} is corrected for {comparisons} comparisons, the interval is not" if corrected else f"; {p}"
        return other if p_value < ALPHA else other + but
    if math.isnan(ci_low) or math.isnan(ci_high):
        return f"too few {drawn_over} for an interval"
    if ci_low > 0:  # by its own interval it holds
        missed = f"the interval lies above 0, yet {p}"
        return missed + (f": p is corrected for {comparisons} comparisons, the interval is not" if corrected else "")
    low, high = (f"{v:+.4f}".replace("+0.", "+.").replace("-0.", "−.") for v in (ci_low, ci_high))
    return f"the interval reaches from {low} to {high}: too few {drawn_over} or no effect look the same"


def no_gain(ci_low: float, ci_high: float, p_value: float, margin: float) -> str:
    """Verdict on "no gain": the interval lies within the margin on either side of 0."""
    if ci_low > 0 and p_value < ALPHA:
        return "not reproduced"
    return "reproduced" if -margin < ci_low and ci_high < margin else "inconclusive"


def no_gain_reason(ci_low: float, ci_high: float, p_value: float, margin: float) -> str:
    """Why `no_gain` says what it says, in words."""
    within = f"± {_short(margin, 4)}, a tenth of the value without it"
    return {
        "reproduced": f"the interval stays within {within}",
        "not reproduced": "there is a gain: the interval lies above 0 and p is below .05",
        "inconclusive": f"the interval reaches beyond {within}",
    }[no_gain(ci_low, ci_high, p_value, margin)]


def _short(value: float, decimals: int) -> str:
    """.041 for 0.041"""
    text = f"{value:.{decimals}f}"
    return text[1:] if text.startswith("0.") else text
