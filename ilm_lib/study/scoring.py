"""The score read-out in the study: its training, its rankings, and what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ilm_lib.devices import device, use_bfloat16
from ilm_lib.files import read_json
from ilm_lib.methods import METHODS, Encoder
from ilm_lib.model.encoders import ItemEncoder, build_encoder
from ilm_lib.model.fold_in import FoldIn
from ilm_lib.model.history import HistoryPrompt
from ilm_lib.model.ilm import ILM
from ilm_lib.model.scoring import ScoreHead
from ilm_lib.sections import Chat, Context, HistoryRule, Precision, Reader, Score
from ilm_lib.settings import Params, QFormerParams
from ilm_lib.study import inputs, stages
from ilm_lib.study.artifacts import Artifact, stage
from ilm_lib.study.openp5 import save_tops
from ilm_lib.study.vectors import MADE_BY, history_fold_in, text_parts, text_vectors, vectors
from ilm_lib.tasks.openp5 import RecommendationTasks
from ilm_lib.tasks.scoring import ScoringTasks, dev_metrics, rank
from ilm_lib.train.score import train_score


def score(params: Params, seed: int, method: str, *, shuffled: bool = False, build: bool = False) -> Artifact:
    """A method's item encoder and head, trained to score the catalogue over the frozen LLM.

    Args:
        shuffled: give every item and user another one's vector (a control).
    """
    chosen, encoder = params.score, METHODS[method].encoder
    tokens = params.qformer.num_query_tokens if method == "MLP-N" else params.phase2.mlp_tokens
    common = _common_inputs(params, seed, build=build)
    aligns = bool(METHODS[method].phase1)
    given = common | {
        "aligned": stages.phase1(params, seed, method, vectors=common["cf"], build=build) if aligns else None,
        "text": text_vectors(params, build=build) if chosen.cold_dropout else None,
        "encoder": encoder,
        "qformer": params.qformer if encoder == "qformer" else None,
        "mlp_tokens": tokens if encoder == "mlp" else 1,
        "settings": chosen,
        "shuffled": shuffled,
        "seed": seed,
    }
    return stage("score", make_score, params.profile, made_by=MADE_BY, build=build, given=given)


def make_score(
    folder: Path,
    *,
    data: Artifact,
    cf: Artifact,
    fold_in: dict[str, float] | None,
    llm: Artifact,
    aligned: Artifact | None,
    text: Artifact | None,
    encoder: Encoder,
    qformer: QFormerParams | None,
    mlp_tokens: int,
    settings: Score,
    shuffled: bool,
    seed: int,
    **wording: Any,
) -> None:
    """Train encoder and head; the weights with the best NDCG@10 on the dev items, history excluded, are kept."""
    tasks = inputs.tasks_of(data, **wording)
    model, tokenizer = reader(llm, settings.llm, seed)
    fold = FoldIn(**fold_in) if fold_in else None
    table, num_items = cf_of_scorer(cf, seed, shuffled, fold, tasks)
    item_encoder = stages.fresh_encoder(
        encoder, table, model, aligned, qformer=qformer, mlp_tokens=mlp_tokens, seed=seed
    )
    item_encoder.dropout.p = settings.vector_dropout
    head = ScoreHead(
        vector_dim=table.shape[1],
        num_items=num_items,
        **head_sizes(model, settings, settings.context),
        free=settings.free,
        free_std=settings.free_std,
        known=table.shape[1] - text_parts(text, settings.text_dim) if text else None,
        cold_dropout=settings.cold_dropout,
        prompt=HistoryPrompt(settings.words, settings.user, settings.history_max),
    )
    counts = torch.from_numpy(tasks.data.item_counts()).float()
    head.share.copy_(counts / counts.sum())
    ilm = ILM(model, tokenizer, item_encoder, table, num_items, tasks.catalogue(), settings.item_positions, fold, head)
    ilm.llm.requires_grad_(settings.llm == "trained")
    scoring = scoring_tasks(ilm, tasks)
    users = inputs.sample_users(tasks.data, "dev", settings.dev_users)
    autocast = use_bfloat16(settings.precision)
    train_score(
        folder,
        ilm,
        scoring.training_batches(ilm.prompts, settings.batch_size, seed, settings.places),
        settings,
        seed=seed,
        evaluate=lambda model, step: dev_metrics(model, scoring, users, autocast=autocast),
    )


def head_sizes(llm: PreTrainedModel, settings: Score | Chat, context: Context) -> dict[str, Any]:
    """What a head over an LLM is made of by the settings of its training, as arguments of `ScoreHead`."""
    every_layer = settings.layers == "all" and context == "llm"
    return {
        "llm_width": llm.get_input_embeddings().embedding_dim,
        "states": llm.config.get_text_config().num_hidden_layers + 1 if every_layer else 1,
        "side": {"layers": settings.side_layers, "heads": settings.side_heads} if settings.side_layers else None,
        "dim": settings.dim,
        "dropout": settings.dropout,
        "context": context,
    }


def cf_of_scorer(
    cf: Artifact, seed: int, shuffled: bool, fold: FoldIn | None, tasks: RecommendationTasks
) -> tuple[Tensor, int]:
    """`stages.cf_of_model`; with a half-life, users' vectors are made of their training parts by it."""
    table, num_items = stages.cf_of_model(cf, seed, shuffled)
    if fold is None or not fold.half_life:
        return table, num_items
    items = table[:num_items]
    users = fold.many(items.numpy(), [tasks.data.train_sequence(u) for u in range(tasks.data.num_users)])
    return torch.cat([items, torch.from_numpy(users)]), num_items


def reader(llm: Artifact, which: Reader, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The profile's LLM, or one of its size with the random weights of a seed."""
    model, tokenizer = stages.load_llm(llm)
    if which != "frozen":
        torch.manual_seed(seed)
        model = type(model)(model.config).eval()
    return model, tokenizer


def scoring_tasks(ilm: ILM, tasks: RecommendationTasks) -> ScoringTasks:
    """The histories of a dataset as a model with a head is asked of them."""
    sources = [t.source for t in tasks.templates if (t.task, t.wording) == ("sequential", "seen")]
    return ScoringTasks(tasks.data, tasks.catalogue(), ilm.cf.cpu(), ilm.head.prompt, sources, ilm.fold_in)


def trained_scorer(
    llm: Artifact,
    cf: Artifact,
    trained: Artifact,
    *,
    tasks: RecommendationTasks,
    fold_in: dict[str, float] | None = None,
    seed: int = 0,
    shuffled: bool = False,
) -> ILM:
    """The model that `score` trained."""
    fold = FoldIn(**fold_in) if fold_in else None
    table, num_items = cf_of_scorer(cf, seed, shuffled, fold, tasks)
    about, encoder, head, weights = trained_parts(trained)
    model, tokenizer = reader(llm, about["llm"], about["seed"])
    if own := part_of(weights, "llm"):
        model.load_state_dict(own)
    positions = about["item_positions"]
    return ILM(model, tokenizer, encoder, table, num_items, tasks.catalogue(), positions, fold, head).eval()


def trained_parts(artifact: Artifact) -> tuple[dict[str, Any], ItemEncoder, ScoreHead, dict[str, Tensor]]:
    """What `train_score` left: score.json, the encoder, the head, and the weights of all that was trained."""
    about, weights = read_json(artifact.path("score.json")), load_file(artifact.path("score.safetensors"))
    encoder, head = build_encoder(about["encoder"]), ScoreHead.from_config(about["head"])
    encoder.load_state_dict(part_of(weights, "encoder"))
    head.load_state_dict(part_of(weights, "head"))
    return about, encoder, head, weights


def part_of(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The weights of one of the modules that were trained together."""
    return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}


def ranking_inputs(params: Params, seed: int, method: str, *, shuffled: bool = False, build: bool) -> dict[str, Any]:
    """What a ranking by a trained read-out depends on, whoever is asked."""
    return _common_inputs(params, seed, build=build) | {
        "trained": score(params, seed, method, shuffled=shuffled, build=build),
        "shuffle_seed": seed if shuffled else None,
        "precision": params.score.precision,
    }


def ranking_model(
    *,
    data: Artifact,
    cf: Artifact,
    fold_in: dict[str, float] | None,
    llm: Artifact,
    trained: Artifact,
    shuffle_seed: int | None,
    **wording: Any,
) -> tuple[ILM, ScoringTasks]:
    """The trained model of `ranking_inputs`, on the device, and the histories it is asked about."""
    tasks = inputs.tasks_of(data, **wording)
    control = {} if shuffle_seed is None else {"shuffled": True, "seed": shuffle_seed}
    ilm = trained_scorer(llm, cf, trained, tasks=tasks, fold_in=fold_in, **control).to(device())
    return ilm, scoring_tasks(ilm, tasks)


def score_ranking(params: Params, seed: int, method: str, *, shuffled: bool = False, build: bool = False) -> Artifact:
    """The ten items that a trained read-out scores highest for every test user, by history rule; see `save_tops`."""
    given = ranking_inputs(params, seed, method, shuffled=shuffled, build=build)
    given |= {"rules": params.evaluation.histories}
    return stage("score_ranking", make_score_ranking, params.profile, made_by=MADE_BY, build=build, given=given)


def make_score_ranking(folder: Path, *, precision: Precision, rules: Sequence[HistoryRule], **model: Any) -> None:
    """Rank for all users; leave tops.npz. A user alone is asked only where the prompt has a user's slot."""
    ilm, scoring = ranking_model(**model)
    users, tops = scoring.data.users_of("test"), {}
    for task in ("sequential", "straightforward") if ilm.head.prompt.shows_users else ("sequential",):
        found = rank(
            ilm, scoring, task=task, split="test", users=users, history_rules=rules, autocast=use_bfloat16(precision)
        )
        tops |= {f"{task}||{rule}": top for rule, top in found.items()}
    save_tops(folder, scoring.data, users, tops)


def _common_inputs(params: Params, seed: int, *, build: bool) -> dict[str, Any]:
    """What training and ranking both depend on."""
    chosen = params.score
    cf = vectors(params, seed, chosen.vectors, build=build)
    shows_users = HistoryPrompt(chosen.words, chosen.user).shows_users
    fold = history_fold_in(params, seed, chosen.vectors) if shows_users else None
    return {
        "data": inputs.data(params),
        "cf": cf,
        "fold_in": None if fold is None else vars(fold) | {"half_life": chosen.user_half_life},
        "llm": stages.backbone(params, seed, build=build),
        **inputs.wording(params),
    }
