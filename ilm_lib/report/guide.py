"""How to read this: the words of a report's tables, a line each, for someone who meets them first."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from ilm_lib.methods import METHODS, in_order
from ilm_lib.report.markdown import render_markdown
from ilm_lib.report.verdicts import RULES

_RANKING = {
    "HR@10": "Hit rate: the share of test users whose next item is among our first ten. Higher is better.",
    "NDCG@10": "The same, but a hit counts for less the lower it stands: 1 at rank 1, .63 at rank 2, .29 at rank 10.",
    "sequential": "The prompt shows the user and the items they had; the model names the next one.",
    "straightforward": "The prompt shows the user alone; all that is known of them is in the user's token or number.",
    "both": "Each test user is asked once in either way, and the two count alike, as in OpenP5.",
    "seen, unseen": "Prompts worded as in training, and one whose wording was kept back.",
    "kept, excluded": "May the user's past items be recommended again? The paper keeps them in the ranking; a "
    "recommender would exclude them, which changes every number.",
    "read-out": "How recommendations come out of a model. Beam: the LLM writes the item's number, token by token, and "
    "the ten likeliest numbers count. Score: a small trained head reads the LLM's hidden states and scores every item.",
}
_TEXT = {
    "log perplexity": "How surprised the model is by the text that was wanted: mean −log probability of a token, in "
    "nats. Lower is better.",
    "SC": "Semantic consistency: how close the text it writes comes in meaning to the one that was wanted (cosine of "
    "sentence embeddings, 1 is the same). Higher is better.",
}
_ALL = {
    "± and †": "Standard error over seeds, that is runs from another start; † with one seed, the error of counting.",
    "95% interval, p": "Of the difference ours minus theirs, over test users; p is the chance of one as large if there "
    "were none.",
}


def guide(methods: Iterable[str], metrics: Iterable[str]) -> str:
    """The section "How to read this".

    Args:
        methods: those in the report's tables; each is explained by its own sentence.
        metrics: those in the tables; what is not measured is not explained.
    """
    metrics = set(metrics)
    words = (
        (_RANKING if any("@" in m for m in metrics) else {})
        | (_TEXT if metrics & {"SC", "log_pplx"} else {})
        | (_ALL if metrics else {})
    )
    known = {name: METHODS[name].sentence for name in in_order(methods)}
    parts = []
    if words:
        parts.append(f"<h3>Measures and settings</h3>{definitions(words)}")
    if known:
        parts.append(
            "<h3>Methods</h3><p>Item vectors come from collaborative filtering: who had what, no words. “Tokens” are "
            f"such vectors in a form that a language model reads in place of words.</p>{definitions(known)}"
        )
    return f'<section class="guide"><h2>How to read this</h2>{"".join(parts)}</section>' if parts else ""


def rules() -> str:
    """The rules of the verdicts, folded."""
    return f'<details class="rules"><summary>What the verdicts mean</summary>{render_markdown(RULES)}</details>'


def definitions(words: dict[str, str]) -> str:
    """Words and what they mean, a line each."""
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in words.items())}</dl>"
