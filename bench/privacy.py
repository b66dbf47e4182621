"""A membership test: what of users' histories can be read back from the folder that `save_pretrained` writes.

    python -m bench.privacy ml100k 0 1 2             train what is missing (an hour of a core a seed), attack, write
    python -m bench.privacy ml100k 0 1 2 --as-is     attack what is trained already
    python -m bench.privacy                          the table of what was written, as PRIVACY.md has it

The attacker has the folder and asks, of half of the users, whether an item was in a user's history. Members are the
items of the training part. Non-members are items that the user never had, drawn uniformly or in the tenth of the
catalogue that a member's popularity is in, and the user's own dev and test items: taste is the same in these, so what
is left is memory, but for what changes with time. The other half of the users trains an LLM that read nothing of those
attacked. Rows go to reports/privacy/results.csv, those of other profiles
than ml100k to runs/<profile>/privacy.csv. For profiles with an LLM of our own.

Expected, written before the first result (AUC against uniform, same popularity, own held-out items):
- vectors of users and items: .97, .95, .85; they were fitted to these very items.
- frozen LLM with number and vector: .88, .75, .65: the encoder passes on a part of what the vector holds.
- number alone, in the frozen LLM that read everybody's prompts: .75, .54, .53: it read a mention of an item once to
  three times, and its few weights remember little of it beside popularity.
- number alone, in an LLM that read other users' prompts: as popularity.
- fully trained: with number and vector a little above frozen; number alone above that of the frozen LLM, by .01 to .05
  after as many steps, by more after three times as many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata

from bench import privacy_models
from ilm_lib.arguments import Parser, whole
from ilm_lib.baselines.cf import CFEmbeddings, fit_cf
from ilm_lib.data import Dataset
from ilm_lib.errors import Refusal
from ilm_lib.model.exhaustive import score_all
from ilm_lib.model.ilm import ILM
from ilm_lib.model.prompts import Prompt
from ilm_lib.profiles import ROOT, load_params, runs_dir
from ilm_lib.settings import Params
from ilm_lib.study import inputs
from ilm_lib.values import MOST

RESULTS = ROOT / "reports" / "privacy" / "results.csv"
FALSE_POSITIVES = 0.01
AGAINST = ("uniform", "popularity", "own held-out")
#: What a row of the results is about, besides `against` and `seed`.
ABOUT = ["llm", "trained", "score", "calibrated"]

# ---------------------------------------------------------------- who is a member


def tenths(counts: np.ndarray, popularity: np.ndarray) -> np.ndarray:
    """0 to 9: the tenth of the catalogue, by `popularity` (I,), that items of these counts are in."""
    return np.searchsorted(np.sort(popularity), counts) * 10 // len(popularity)


def non_members(data: Dataset, user: int, popularity: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Item rows to set against a user's members, by kind.

    Args:
        popularity: (I,) how many users have an item; the user's own having it does not count for a member. Of
            "popularity" there is one non-member for each member, where the tenth has any.
    """
    members, free = np.unique(data.train_sequence(user)), np.setdiff1d(np.arange(data.num_items), data.sequence(user))
    free_tenth = tenths(popularity[free], popularity)
    free_in = [free[free_tenth == t] for t in range(10)]
    matched = [rng.choice(free_in[t]) for t in tenths(popularity[members] - 1, popularity) if len(free_in[t])]
    return {
        "uniform": rng.choice(free, len(members)),
        "popularity": np.array(matched, dtype=int),
        "own held-out": np.setdiff1d(data.sequence(user)[-2:], members),
    }


# ---------------------------------------------------------------- the attack's arithmetic


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """How often a member's score is above a non-member's, ties counting half; NaN where one kind is missing."""
    if not len(members) or not len(others):
        return float("nan")
    ranks = rankdata(np.concatenate([members, others]))[: len(members)]
    return float((ranks.sum() - len(members) * (len(members) + 1) / 2) / (len(members) * len(others)))


def threshold(others: np.ndarray, rate: float = FALSE_POSITIVES) -> float:
    """The score that at most `rate` of the non-members exceed."""
    return float(np.sort(others)[::-1][int(rate * len(others))])


def attack(scores: np.ndarray, members: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> pd.DataFrame:
    """(U', I) scores as claims of membership; a row a user.

    Returns:
        auc: within the user.
        tpr: share of the user's members above the score that 1% of all users' non-members exceed.
    """
    high = threshold(np.concatenate([row[o] for row, o in zip(scores, others)]))
    rows = [(auc(row[m], row[o]), float((row[m] > high).mean())) for row, m, o in zip(scores, members, others)]
    return pd.DataFrame(rows, columns=["auc", "tpr"])


def calibrate(scores: np.ndarray) -> np.ndarray:
    """Scores less what the item has with the other users: what is left is about this one."""
    return scores - scores.mean(0)


# ---------------------------------------------------------------- what a folder tells


def folder_scores(ilm: ILM, users: np.ndarray) -> dict[str, np.ndarray]:
    """(U', I) log probabilities of all items as answers about `users`, by what the prompt holds of a user."""
    number = log_probabilities(ilm, users, slots=False)
    if ilm.encoder is None:
        return {"number alone": number}
    own = log_probabilities(ilm, users)
    kept = ilm.cf.clone()
    ilm.cf[ilm.num_items + users] = kept[ilm.num_items + np.roll(users, 1)]
    mixed = log_probabilities(ilm, users)  # row i: the number of user i, the vector of the one before
    ilm.cf.copy_(kept)
    return {
        "number and vector": own,
        "number alone": number,
        "number, another's vector": mixed,
        "vector, another's number": np.roll(mixed, -1, axis=0),
        "number and vector, less number alone": own - number,
    }


def log_probabilities(ilm: ILM, users: np.ndarray, *, slots: bool = True, batch_size: int = 64) -> np.ndarray:
    """(U', I) log probability of every item as the answer to the folder's straightforward prompt.

    Args:
        slots: with users' vectors; else the LLM reads the text alone.
    """
    c = ilm.catalogue
    assert c is not None, "a folder without a catalogue has no prompts"
    prompts: list[Prompt] = [c.indexing.render(c.straightforward, int(u)) for u in users]
    if not slots:
        prompts = [[part for part in prompt if isinstance(part, str)] for prompt in prompts]
    parts = [prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size)]
    scores = one_token if distinct_token(ilm) is not None else every_token
    return torch.cat([scores(ilm, part) for part in parts]).cpu().numpy()


def distinct_token(ilm: ILM) -> int | None:
    """Where the answers of all items differ, if that is one token and all else is the same."""
    answers = [ilm.prompts.answer_ids(answer) for answer in answers_of(ilm)]
    if len({len(a) for a in answers}) > 1:
        return None
    differ = np.flatnonzero((np.array(answers) != np.array(answers[0])).any(0))
    return int(differ[0]) if len(differ) == 1 else None


def answers_of(ilm: ILM) -> list[str]:
    c = ilm.catalogue
    assert c is not None
    return [c.indexing.answer(c.target, row) for row in range(ilm.num_items)]


@torch.no_grad()
def one_token(ilm: ILM, prompts: Sequence[Prompt]) -> torch.Tensor:
    """(B, I) log probability of the token that tells items apart, after the words that lead up to it."""
    place, answers = distinct_token(ilm), answers_of(ilm)
    batch = ilm.encode(prompts, answers=answers[:1] * len(prompts))
    logits = ilm(batch, use_cache=False).logits.float().view(len(prompts), -1, ilm.llm.config.vocab_size)[:, place]
    tokens = torch.tensor([ilm.prompts.answer_ids(answer)[place] for answer in answers], device=ilm.device)
    return logits.log_softmax(-1)[:, tokens]


@torch.no_grad()
def every_token(ilm: ILM, prompts: Sequence[Prompt]) -> torch.Tensor:
    """(B, I) log probability of whole answers."""
    return score_all(ilm.llm, ilm.prefill(prompts), ilm.trie)


def vector_scores(cf: CFEmbeddings, users: np.ndarray) -> dict[str, np.ndarray]:
    """(U', I) what vectors say without any model."""
    unit = lambda rows: rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)  # one may be all zeros
    return {"dot product": cf.user[users] @ cf.item.T, "cosine": unit(cf.user[users]) @ unit(cf.item).T}


# ---------------------------------------------------------------- all of it


def measure(params: Params, seeds: Sequence[int], *, build: bool = True) -> pd.DataFrame:
    """Rows of every model, score, kind of non-member and seed, a row a user.

    Args:
        build: train the models that are missing; else they are left out.
    """
    data = inputs.dataset(params)
    users, rng = privacy_models.attacked(data.num_users), np.random.default_rng(0)
    train = data.train_matrix()
    popularity = np.asarray(train.sum(0)).ravel()
    members = [np.unique(data.train_sequence(u)) for u in users]
    drawn = [non_members(data, u, popularity, rng) for u in users]
    others = {kind: [of_user[kind] for of_user in drawn] for kind in AGAINST}

    def attacks(scores: np.ndarray, members: Sequence[np.ndarray], **about: Any) -> Iterator[pd.DataFrame]:
        both = [(False, scores), (True, calibrate(scores))]
        for name, values in both[: 1 + (about["score"] != "popularity")]:  # it differs by the user's own items alone
            for kind in AGAINST:
                found = attack(values, members, others[kind])
                yield found.assign(user=users, against=kind, calibrated=name, **about)

    found: list[pd.DataFrame] = []
    for seed in seeds:
        bare: dict[str, Any] = {"llm": "none", "trained": "none", "seed": seed}
        found += attacks(popularity - train[users].toarray(), members, score="popularity", **bare)  # with others
        left_out = [rng.choice(m, len(m) // 2, replace=False) for m in members]
        for score, values in vector_scores(fitted_without(params, data, seed, users, left_out), users).items():
            found += attacks(values, left_out, score=f"{score}, members left out of the fit", **bare)
        for score, values in vector_scores(inputs.cf_embeddings(inputs.embeddings(params, seed)), users).items():
            found += attacks(values, members, score=score, **bare)
        for model in privacy_models.models(params, seed, build=build):
            print(f"▶ seed {seed}: an LLM that read prompts of {model.llm}; learned: {model.trained}", flush=True)
            about = {"llm": model.llm, "trained": model.trained, "seed": seed, "dev": model.dev}
            for score, values in folder_scores(ILM.from_pretrained(model.folder), users).items():
                found += attacks(values, members, score=score, **about)
    return pd.concat(found, ignore_index=True)


def fitted_without(
    params: Params, data: Dataset, seed: int, users: np.ndarray, items: Sequence[np.ndarray]
) -> CFEmbeddings:
    """The embeddings of a profile as if `users` had not had `items`, their rows: taste without memory."""
    train = data.train_matrix().tolil()
    for user, without in zip(users, items):
        train[user, without] = 0
    train = train.tocsr()
    train.eliminate_zeros()
    return fit_cf(train, **params.embeddings.model_dump(exclude={"file"}), seed=seed)


def less_frozen(found: pd.DataFrame) -> pd.DataFrame:
    """Rows of `measure` by which fully trained models differ from the frozen one, user by user."""
    own = ["llm", "score", "calibrated", "against", "seed", "user"]
    frozen = found[found["trained"] == "encoder"].set_index(own)[["auc", "tpr", "dev"]]
    rows = [
        (found[found["trained"] == how].set_index(own)[["auc", "tpr", "dev"]] - frozen).dropna(how="all")
        for how in ("encoder and LLM", privacy_models.LONGER)
    ]
    names = ("encoder and LLM, less encoder", f"{privacy_models.LONGER}, less encoder")
    return pd.concat([part.assign(trained=name).reset_index() for name, part in zip(names, rows)], ignore_index=True)


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """Means with standard errors: a row a seed, and one over the seeds, `seed` "mean".

    `auc_se_users` is that over users (of their means over the seeds, in the rows "mean"), `auc_se_seeds` that over
    seeds; the same for `tpr`. `dev` is the model's NDCG@10 on the dev items of 200 users, history kept.
    """
    rows = []
    for key, group in found.groupby([*ABOUT, "against"], sort=False):
        cells = {name: group.pivot(index="seed", columns="user", values=name) for name in ("auc", "tpr")}
        dev = group.groupby("seed")["dev"].first()
        for seed in [*dev.index, "mean"]:
            row: dict[str, Any] = {**dict(zip([*ABOUT, "against"], key)), "seed": seed}
            for name, cell in cells.items():
                of_users = (cell if seed == "mean" else cell.loc[[seed]]).mean(axis=0).dropna()
                row |= {"users": len(of_users), name: of_users.mean(), f"{name}_se_users": standard_error(of_users)}
                row[f"{name}_se_seeds"] = standard_error(cell.mean(axis=1)) if seed == "mean" else np.nan
            rows.append(row | {"dev": dev.mean() if seed == "mean" else dev[seed]})
    return pd.DataFrame(rows)


def standard_error(values: pd.Series) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


# ---------------------------------------------------------------- the page's table

#: Rows of the table, several by one name: what was shared, what the attacker uses of it, and which row it is.
SHOWN: Sequence[tuple[str, str, tuple[str, str, str]]] = (
    ("CF vectors", "user's and item's", ("none", "none", "cosine")),
    ("", "the same, fitted without the items asked for", ("none", "none", "cosine, members left out of the fit")),
    ("**frozen LLM**, as in the study", "number and vector", ("all users", "encoder", "number and vector")),
    ("", "vector, another's number", ("all users", "encoder", "vector, another's number")),
    ("", "number alone", ("all users", "encoder", "number alone")),
    ("**frozen LLM of other users**", "number alone", ("other users", "nothing", "number alone")),
    ("", "number and vector", ("other users", "encoder", "number and vector")),
    ("**fully trained**", "number and vector", ("all users", "encoder and LLM", "number and vector")),
    ("", "number alone", ("all users", "encoder and LLM", "number alone")),
    (
        "**fully trained**, from the LLM of other users",
        "number and vector",
        ("other users", "encoder and LLM", "number and vector"),
    ),
    ("", "number alone", ("other users", "encoder and LLM", "number alone")),
    ("**fully trained, longer**", "number and vector", ("all users", privacy_models.LONGER, "number and vector")),
    ("", "number alone", ("all users", privacy_models.LONGER, "number alone")),
)


def table(results: pd.DataFrame) -> str:
    """`SHOWN` as Markdown: calibrated AUC ± standard error over users, and the true positive rate as scores come."""
    lines = [
        "| shared | used | uniform | same popularity | own held-out | found |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    means = results[results["seed"] == "mean"]
    for shared, used, about in SHOWN:
        rows = means[(means[["llm", "trained", "score"]] == list(about)).all(axis=1)].set_index(
            ["against", "calibrated"]
        )
        if not rows.empty:
            cells = [plus_minus(*rows.loc[(kind, True), ["auc", "auc_se_users"]]) for kind in AGAINST]
            found = f"{rows.loc[('popularity', False), 'tpr']:.1%}"
            lines.append(f"| {' | '.join([shared, used, *cells, found])} |")
    return "\n".join(lines)


def plus_minus(value: float, error: float) -> str:
    return f"{value:.3f} ± {error:.3f}".replace("0.", ".")


def results_of(profile: str) -> Path:
    """Those of ML100K are published; those of other profiles lie with their runs."""
    return RESULTS if profile == "ml100k" else runs_dir() / profile / "privacy.csv"


def main(profile: str, seeds: Sequence[int], *, build: bool) -> None:
    params = load_params(profile)
    inputs.data(params, build=True)
    for seed in seeds:
        inputs.embeddings(params, seed, build=True)
    path = results_of(profile)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = measure(params, seeds, build=build)
    results = summary(pd.concat([found, less_frozen(found)]))
    results.to_csv(path, index=False, float_format="%.4f")


if __name__ == "__main__":
    parser = Parser(prog="python -m bench.privacy", description=__doc__)
    parser.add_argument("profile", nargs="?", help="of params/; none: the table of what was measured")
    parser.add_argument("seeds", nargs="*", type=whole(MOST, 0), default=[0])
    parser.add_argument("--as-is", action="store_true", help="attack what is trained already, and train nothing")
    try:
        args = parser.parse_args()
        if args.profile:
            main(args.profile, args.seeds, build=not args.as_is)
        print(table(pd.read_csv(results_of(args.profile or "ml100k"))))
    except Refusal as error:
        raise SystemExit(f"✗ {error}") from None
