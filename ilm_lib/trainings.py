"""The trainings of a profile as a plan needs them: what is trained, on what batch, and the FLOPs of a step.

Models are made under a fake mode, where they have shapes and no numbers; batches are real, as training draws them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from ilm_lib.costs import Load, Target, count, llm_flops, phase1_flops, query_flops
from ilm_lib.data import Dataset, data_dir, load_openp5
from ilm_lib.data.llms import find_llm
from ilm_lib.data.templates import OUR_TEMPLATES, load_templates
from ilm_lib.errors import Refusal
from ilm_lib.methods import TEXT_LOSSES, Loss
from ilm_lib.model.backbone import LanguageModel, attend_fused, new_backbone, recompute_layers
from ilm_lib.model.encoders import QFormerEncoder
from ilm_lib.model.ilm import ILM
from ilm_lib.model.indexing import Indexing
from ilm_lib.model.prompts import Batch, Item, Prompt, PromptEncoder
from ilm_lib.model.qformer import QFormer
from ilm_lib.model.text_tower import QFormerForPhase1
from ilm_lib.model.tokenizer import train_tokenizer
from ilm_lib.paper import PAPER_TABLE2
from ilm_lib.sections import Optim
from ilm_lib.settings import Params
from ilm_lib.tasks.openp5 import TASKS, RecommendationTasks
from ilm_lib.train.phase1 import Losses

DRAWN = 8  # batches of which FLOPs are the mean; memory is that of the largest


class _Codec(NamedTuple):
    """What phase 1 asks of a text codec in its losses."""

    pad: int = 0
    dec: int = 3


class _Vocabulary:
    """What `new_backbone` asks of a tokenizer."""

    pad_token_id, bos_token_id, eos_token_id = range(3)

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size


#: The LLMs of `data.llms`, for those who have not fetched them.
_PACKAGED = {
    "smollm2": LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
}


def prompts(params: Params) -> tuple[RecommendationTasks, list[str]]:
    """The prompts of a profile, over its data where they are at hand, else over full histories; and which it was."""
    d, notes = params.data, []
    if d.folder and (data_dir() / d.folder / "user_sequence.txt").is_file():
        data = load_openp5(data_dir() / d.folder, name=d.name)
    else:
        known = PAPER_TABLE2.set_index("dataset")[["users", "items"]]
        users, items = known.loc[d.name] if d.name in known.index else (d.num_users, d.num_items)
        data = full_histories(d.name, int(users), int(items), d.history_max)
        notes.append("prompts are made up, of full histories: real ones need the data in ILM_DATA_DIR")
    own = data_dir() / d.templates if d.templates else None
    templates = load_templates(own) if own and own.is_file() else OUR_TEMPLATES
    indexing = Indexing(data.name, data.user_index, data.item_index, d.history_separator)
    return RecommendationTasks(data, templates, indexing, d.history_max), notes


def full_histories(name: str, users: int, items: int, length: int) -> Dataset:
    """Users who have had `length` items before any that is asked for."""
    each = length + 4
    sequences = np.arange(users)[:, None] * 7 + np.arange(each)
    return Dataset(
        name=name,
        users=[str(u) for u in range(users)],
        items=[str(i) for i in range(items)],
        sequences=(sequences % items).astype(np.int32).ravel(),
        offsets=np.arange(users + 1) * each,
        user_index=np.arange(users) + 1,
        item_index=np.arange(items) + 1001,
        texts=[{}] * items,
        notes={},
        checksums={},
    )


def new_llm(params: Params, vocab: int) -> PreTrainedModel:
    """The LLM of a profile, with fresh weights: for a fake mode, or the meta device.

    Args:
        vocab: tokens of our own LLM.

    Raises:
        Refusal: a named LLM is not at hand.
    """
    name = params.backbone.pretrained
    if name is None:
        return new_backbone(params.backbone, _Vocabulary(vocab), max_length=1024)
    try:
        config = AutoConfig.from_pretrained(find_llm(name), trust_remote_code=False)
    except (OSError, ValueError, Refusal) as error:
        if name not in _PACKAGED:
            raise Refusal(f"backbone.pretrained {name[:100]}: its sizes cannot be read. {str(error)[:100]}") from None
        config = _PACKAGED[name]
    named = params.backbone.dtype
    dtype = config.dtype or torch.float32 if named == "auto" else getattr(torch, named)
    llm = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return recompute_layers(llm) if params.backbone.recompute else llm


def new_qformer(params: Params) -> QFormerForPhase1:
    """The Q-Former of a profile as phase 1 trains it, with fresh weights: for a fake mode, or the meta device."""
    return QFormerForPhase1(QFormer(params.qformer, params.embeddings.dim), params.qformer.text_vocab)


@dataclass(frozen=True)
class Training:
    """One training of a profile.

    Attributes:
        optim: how it runs.
        make: its model and those of the weights that are trained; called under a fake mode, or on a device.
        loss: (model, batch) -> named losses, as `loop.fit` takes it.
        batch: the largest of those drawn.
        trained, frozen: weights.
        flops: of a step.
        keep_best: the best weights are kept beside the last.
    """

    name: str
    optim: Optim
    make: Callable[[], tuple[nn.Module, list[nn.Parameter]]]
    loss: Callable[[nn.Module, Any], Mapping[str, Tensor]]
    batch: Any
    trained: int
    frozen: int
    flops: float
    keep_best: bool = False


class Trainings:
    """The trainings of a profile, by the method ILM.

    Args:
        params: the profile.
        tasks: its prompts.
        target: where they run, which decides how our LLM attends.
    """

    def __init__(self, params: Params, tasks: RecommendationTasks, target: Target):
        self.params, self.tasks, self.target = params, tasks, target
        names = tasks.indexing.names() if params.backbone.index_tokens == "whole" else ()
        self.tokenizer = train_tokenizer(tasks.corpus(), params.backbone.vocab, whole=names)

    def llm(self, vocab: int | None = None) -> PreTrainedModel:
        llm = new_llm(self.params, vocab or len(self.tokenizer))
        if self.target == "gpu":
            attend_fused(llm)
        return llm

    def encoder(self, num_query_tokens: int) -> PromptEncoder:
        items, positions = self.tasks.data.num_items, self.params.phase2.item_positions
        return PromptEncoder(self.tokenizer, items, num_query_tokens, positions)

    def backbone(self) -> Training:
        """Our LLM, on text-only prompts."""
        draw = self.tasks.training_batches(self.encoder(0), self.params.backbone.batch_size, "text", 0)
        return self._read("LLM", self.params.backbone, draw)

    def phase1(self) -> Training:
        return self._align("phase 1", self.params, self.params.losses_of("ILM"))

    def phase2(self) -> Training:
        p, encoder = self.params.phase2, self.encoder(self.params.qformer.num_query_tokens)
        draw = self.tasks.training_batches(encoder, p.batch_size, p.loss_on, 0)
        return self._read("phase 2", p, draw, frozen=True, keep_best=True)

    def elm_backbone(self) -> Training:
        e = self.params.elm24
        lengths = {"steps": e.backbone_steps, "batch_size": e.backbone_batch_size}
        optim = self.params.backbone.model_copy(update=lengths)
        draw = self._films(optim.batch_size, self.encoder(0), card=e.max_text_tokens)
        return self._read("ELM LLM", optim, draw, vocab=self.params.qformer.text_vocab)

    def elm_phase1(self) -> Training:
        e = self.params.elm24
        changes = {"phase1.steps": e.phase1_steps, "qformer.max_text_tokens": e.max_text_tokens}
        return self._align("ELM phase 1", self.params.with_(**changes), TEXT_LOSSES)

    def elm_phase2(self) -> Training:
        optim = self.params.phase2.model_copy(update={"steps": self.params.elm24.phase2_steps})
        draw = self._films(optim.batch_size, self.encoder(self.params.qformer.num_query_tokens))
        return self._read("ELM phase 2", optim, draw, frozen=True, vocab=self.params.qformer.text_vocab)

    def evaluation_flops(self) -> float:
        """FLOPs to rank for all test users, in both tasks and every wording: prompts are read, `beams` answers written,
        and every item and user is encoded once."""
        e, data, encoder = self.params.evaluation, self.tasks.data, self.encoder(self.params.qformer.num_query_tokens)
        users = data.users_of("test")[: e.max_users]
        some = users[:: max(1, len(users) // 256)]
        read = [Load.of(encoder.batch(self.tasks.evaluation_prompts(t, "seen", "test", some))) for t in TASKS]
        answer = self.tasks.indexing.answer(self.tasks.catalogue().target, 0)
        written = e.beams * len(some) * (len(encoder.answer_ids(answer)) - 1)  # a prompt's end tells the first token
        with FakeTensorMode():
            llm, qformer = self.llm(), QFormer(self.params.qformer, self.params.embeddings.dim)
        flops = query_flops(qformer, data.num_items + data.num_users)
        for load in read:
            pairs = load.pairs + written * load.tokens / len(some)
            load = Load(load.tokens + written, pairs, len(some) + written, 0)
            once = llm_flops(llm, load, products=1, attention=1)
            flops += once * len(e.prompts) * len(users) / len(some)
        return flops

    def _films(self, size: int, encoder: PromptEncoder, card: int = 0) -> Callable[[int], Batch]:
        """Batches as long as those of the ELM tasks (on 3,047 films, questions of 9 tokens and texts of 57 with
        `max_text_tokens` 96): a question about a film, with a card where the LLM reads, and a text of half to three
        quarters of `max_text_tokens`."""
        rng = np.random.default_rng(0)

        def draw(number: int) -> Batch:
            films = rng.integers(self.tasks.data.num_items, size=size).tolist()
            quarters = rng.integers(2, 3, size=size, endpoint=True).tolist()
            asked: list[Prompt] = [[text_of(encoder, 9), Item(film), text_of(encoder, card)] for film in films]
            answers = [text_of(encoder, n * self.params.elm24.max_text_tokens // 4) for n in quarters]
            return encoder.batch(asked, answers=answers, pack=True)

        return draw

    def _align(self, name: str, params: Params, wanted: tuple[Loss, ...]) -> Training:
        """Phase 1, on texts as long as the profile lets them be."""
        p, length = params.phase1, params.qformer.max_text_tokens
        build = lambda: Losses(new_qformer(params), p, wanted, _Codec())  # type: ignore[arg-type]
        with FakeTensorMode():
            model = new_qformer(params)
        flops = phase1_flops(model, p.batch_size, length, wanted)
        batch = phase1_batch(p.batch_size, length, params.embeddings.dim, wanted)
        return Training(name, p, partial(_all, build), _losses, batch, count(model), 0, flops * p.accumulate)

    def _read(
        self,
        name: str,
        optim: Optim,
        draw: Callable[[int], Batch],
        *,
        frozen: bool = False,
        keep_best: bool = False,
        vocab: int | None = None,
    ) -> Training:
        """A training in which the LLM reads prompts; `frozen`: for a Q-Former that is trained beside it."""
        batches = [draw(number) for number in range(DRAWN)]
        make = partial(self._ilm, vocab) if frozen else partial(_all, lambda: LanguageModel(self.llm(vocab)))
        with FakeTensorMode():
            model, trained = make()
        load = Load.mean([Load.of(batch) for batch in batches])
        flops = llm_flops(model.llm, load, products=2 if frozen else 3, attention=3)
        if frozen:
            tower, out = model.encoder.qformer, model.encoder.out.weight.numel()
            flops += 3 * (query_flops(tower, load.entities) + 2 * out * load.entities * tower.num_query_tokens)
        learned = sum(p.numel() for p in trained)
        return Training(
            name,
            optim,
            make,
            _losses,
            max(batches, key=lambda b: b.input_ids.numel()),
            learned,
            count(model) - learned,
            flops * optim.accumulate,
            keep_best,
        )

    def _ilm(self, vocab: int | None = None) -> tuple[nn.Module, list[nn.Parameter]]:
        llm, d, data = self.llm(vocab), self.params.embeddings.dim, self.tasks.data
        encoder = QFormerEncoder(QFormer(self.params.qformer, d), llm.get_input_embeddings().embedding_dim)
        cf = torch.zeros(data.num_items + data.num_users, d)
        return ILM(llm, self.tokenizer, encoder, cf, data.num_items), list(encoder.parameters())


def phase1_batch(size: int, length: int, d: int, wanted: Collection[str]) -> dict[str, Any]:
    """The largest batch of phase 1: texts of `length` tokens, or pairs where no loss reads a text."""
    rows = torch.arange(size)
    if not {*TEXT_LOSSES} & {*wanted}:
        cf = torch.zeros(size, d)
        return {"kind": next(iter(wanted)), "cf_a": cf, "cf_b": cf, "ids_a": rows, "ids_b": rows}
    ids = torch.ones(size, length, dtype=torch.long)
    return {"cf": torch.zeros(size, d), "ids": ids, "entity": rows, "targets": torch.arange(size * (length - 1))}


def text_of(encoder: PromptEncoder, tokens: int) -> str:
    """A text of about so many tokens."""
    return " item" * round(tokens / len(encoder.text_ids(" item")))


def _all(build: Callable[[], nn.Module]) -> tuple[nn.Module, list[nn.Parameter]]:
    model = build()
    return model, list(model.parameters())


def _losses(model: nn.Module, batch: Any) -> Mapping[str, Tensor]:
    if isinstance(model, Losses):
        return model(batch)
    return {"loss": model(batch) if isinstance(model, LanguageModel) else model(batch, use_cache=False).loss}
