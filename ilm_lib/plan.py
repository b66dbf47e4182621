"""What a profile costs before it is run: weights, memory, FLOPs and hours of every training of the paper.

python -m ilm_lib.plan --profile paper-beauty --memory 80 --utilisation 40

The arithmetic and its formulas are in `costs`. Batches are those that training draws, where the data are at hand; else all
histories count as full. Hours are FLOPs over the peak of the chips (dense bfloat16, from the makers' data sheets) times the
utilisation given. Numbers of a plan are of one seed of the method ILM.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from ilm_lib.arguments import BadArgument, Parser, whole
from ilm_lib.costs import Load, Memory, Target, count, count_bare, llm_flops, memory, phase1_flops, query_flops
from ilm_lib.data import Dataset, data_dir, load_openp5
from ilm_lib.data.llms import find_llm
from ilm_lib.data.templates import OUR_TEMPLATES, load_templates
from ilm_lib.errors import Refusal
from ilm_lib.model.backbone import LanguageModel, attend_fused, new_backbone
from ilm_lib.model.encoders import QFormerEncoder
from ilm_lib.model.ilm import ILM
from ilm_lib.model.indexing import Indexing
from ilm_lib.model.prompts import Batch, Item, PromptEncoder
from ilm_lib.model.qformer import QFormer
from ilm_lib.model.text_tower import QFormerForPhase1
from ilm_lib.model.tokenizer import train_tokenizer
from ilm_lib.paper import PAPER_TABLE2
from ilm_lib.profiles import load_params
from ilm_lib.sections import Optim
from ilm_lib.settings import Params
from ilm_lib.tasks.openp5 import TASKS, RecommendationTasks
from ilm_lib.train.phase1 import Losses

#: Chips, and the peak of one in FLOP/s.
HARDWARE = {"H100": (1, 989e12), "16 TPU v5e": (16, 197e12)}
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


@dataclass(frozen=True)
class Stage:
    """What one stage costs.

    Attributes:
        trained, frozen: weights.
        flops: of a step.
        memory: of a step; None where no training takes place.
    """

    name: str
    steps: int
    trained: int
    frozen: int
    flops: float
    memory: Memory | None


@dataclass(frozen=True)
class Plan:
    """Stages in their order.

    Attributes:
        qformer, llm: all weights, and those without embeddings of tokens (`costs.count_bare`).
        notes: what was assumed, and what of the profile is in no plan.
    """

    stages: list[Stage]
    qformer: tuple[int, int]
    llm: tuple[int, int]
    notes: list[str]

    @property
    def peak(self) -> int:
        """Bytes that the largest training takes."""
        return max(stage.memory.peak for stage in self.stages if stage.memory is not None)


def plan(params: Params, target: Target = "gpu") -> Plan:
    """Plan a profile, for a GPU or for a CPU like this machine's.

    Raises Refusal where a named LLM is not at hand.
    """
    tasks, notes = prompts(params)
    p = _Planner(params, tasks, target)
    stages: list[Stage] = []
    e, elm, beam = params.evaluation, params.elm24, "beam" in params.evaluation.readouts
    if e.enabled or params.chat.enabled:
        stages += [] if params.backbone.pretrained else [p.backbone()]
        stages += [p.phase1(params)]
    if e.enabled and beam:
        stages += [p.phase2(), p.evaluation()]
    if elm.enabled:
        own = params.with_(**{"phase1.steps": elm.phase1_steps, "qformer.max_text_tokens": elm.max_text_tokens})
        stages += [] if params.backbone.pretrained else [p.elm_backbone()]
        stages += [p.phase1(own, "ELM phase 1", ("itc", "itg", "itm")), p.elm_phase2()]
    left_out = ["SASRec"] * e.enabled + ["the score read-out"] * (e.enabled and "score" in e.readouts)
    left_out += ["dialogues"] * params.chat.enabled + ["what the LLM writes on the ELM tasks"] * elm.enabled
    if left_out:
        notes.append(f"not planned: {', '.join(left_out)}")
    with FakeTensorMode():
        qformer, llm = new_qformer(params), p.llm()
    return Plan(stages, (count(qformer), count_bare(qformer)), (count(llm), count_bare(llm)), notes)


def prompts(params: Params) -> tuple[RecommendationTasks, list[str]]:
    """The prompts of a profile, over its data where they are at hand, else over full histories; and which it was."""
    d, notes = params.data, []
    if d.folder and (data_dir() / d.folder / "user_sequence.txt").is_file():
        data = load_openp5(data_dir() / d.folder, name=d.name)
    else:
        known = PAPER_TABLE2.set_index("dataset")[["users", "items"]]
        users, items = known.loc[d.name] if d.name in known.index else (d.num_users, d.num_items)
        data = full_histories(d.name, int(users), int(items), d.history_max)
        notes.append("made up: all histories are full; with the data in ILM_DATA_DIR it is those that training draws")
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
        return new_backbone(params.backbone, _Vocabulary(vocab), max_length=1024)  # type: ignore[arg-type]
    try:
        config = AutoConfig.from_pretrained(find_llm(name), trust_remote_code=False)
    except (OSError, ValueError, Refusal) as error:
        if name not in _PACKAGED:
            raise Refusal(f"backbone.pretrained {name[:100]}: its sizes cannot be read. {str(error)[:100]}") from None
        config = _PACKAGED[name]
    return AutoModelForCausalLM.from_config(config)


def new_qformer(params: Params) -> QFormerForPhase1:
    """The Q-Former of a profile as phase 1 trains it, with fresh weights: for a fake mode, or the meta device."""
    return QFormerForPhase1(QFormer(params.qformer, params.embeddings.dim), params.qformer.text_vocab)


class _Planner:
    """Plans stages of one profile.

    Args:
        tasks: its prompts.
        target: where they run.
    """

    def __init__(self, params: Params, tasks: RecommendationTasks, target: Target):
        self.params, self.tasks, self.target = params, tasks, target
        whole_names = tasks.indexing.names() if params.backbone.index_tokens == "whole" else ()
        self.tokenizer = train_tokenizer(tasks.corpus(), params.backbone.vocab, whole=whole_names)

    def llm(self, vocab: int | None = None) -> PreTrainedModel:
        llm = new_llm(self.params, vocab or len(self.tokenizer))
        if self.target == "gpu":
            attend_fused(llm)
        return llm

    def encoder(self, num_query_tokens: int) -> PromptEncoder:
        items, positions = self.tasks.data.num_items, self.params.phase2.item_positions
        return PromptEncoder(self.tokenizer, items, num_query_tokens, positions)

    def backbone(self) -> Stage:
        draw = self.tasks.training_batches(self.encoder(0), self.params.backbone.batch_size, "text", 0)
        return self._read("LLM", self.params.backbone, draw)

    def phase1(self, params: Params, name: str = "phase 1", wanted: tuple[Any, ...] | None = None) -> Stage:
        """On texts as long as the profile lets them be."""
        p, wanted = params.phase1, wanted or params.losses_of("ILM")
        batch = phase1_batch(params, wanted)
        make = partial(_all, lambda: Losses(new_qformer(params), p, wanted, _Codec()))  # type: ignore[arg-type]
        with FakeTensorMode():
            model = new_qformer(params)
        flops = phase1_flops(model, p.batch_size, params.qformer.max_text_tokens, wanted)
        held = memory(make, lambda m, b: m(b), batch, p, target=self.target)
        return Stage(name, p.steps, count(model), 0, flops * p.accumulate, held)

    def phase2(self) -> Stage:
        p, encoder = self.params.phase2, self.encoder(self.params.qformer.num_query_tokens)
        draw = self.tasks.training_batches(encoder, p.batch_size, p.loss_on, 0)
        return self._read("phase 2", p, draw, frozen=True, keep_best=True)

    def evaluation(self) -> Stage:
        """All test users, both tasks, every wording: prompts are read, then `beams` answers are written."""
        e, data, encoder = self.params.evaluation, self.tasks.data, self.encoder(self.params.qformer.num_query_tokens)
        users = data.users_of("test")[: e.max_users]
        some = users[:: max(1, len(users) // 256)]
        loads = []
        for task in TASKS:
            asked = self.tasks.evaluation_prompts(task, "seen", "test", some)
            loads.append(Load.of(encoder.batch(asked)))
        read = Load.mean(loads)
        target = self.tasks.catalogue().target
        written = len(encoder.answer_ids(self.tasks.indexing.answer(target, 0))) - 1  # the first is read off the prompt
        each = read.tokens / len(some) + written
        answers = e.beams * written * len(some)
        with FakeTensorMode():
            llm, qformer = self.llm(), QFormer(self.params.qformer, self.params.embeddings.dim)
        load = Load(read.tokens + answers, read.pairs + answers * each, len(some) + answers, 0)
        once = llm_flops(llm, load, products=1, attention=1) * len(users) / len(some)
        steps = len(TASKS) * len(e.prompts)
        flops = once + query_flops(qformer, data.num_items + data.num_users) / steps
        return Stage("evaluation", steps, 0, count(llm) + count(qformer), flops, None)

    def elm_backbone(self) -> Stage:
        e = self.params.elm24
        lengths = {"steps": e.backbone_steps, "batch_size": e.backbone_batch_size, "lr": self.params.backbone.lr}
        optim = self.params.backbone.model_copy(update=lengths)
        draw = self._films(optim.batch_size, self.encoder(0), card=e.max_text_tokens)
        return self._read("ELM LLM", optim, draw, vocab=self.params.qformer.text_vocab)

    def elm_phase2(self) -> Stage:
        optim = self.params.phase2.model_copy(update={"steps": self.params.elm24.phase2_steps})
        draw = self._films(optim.batch_size, self.encoder(self.params.qformer.num_query_tokens))
        return self._read("ELM phase 2", optim, draw, frozen=True, vocab=self.params.qformer.text_vocab)

    def _films(self, size: int, encoder: PromptEncoder, card: int = 0) -> Callable[[int], Batch]:
        """Batches as long as those of the ELM tasks (3,047 films: questions of 9 tokens, texts of 57, with
        `max_text_tokens` 96): a question about a film, with a card where the LLM reads, and a text of two thirds of
        `max_text_tokens`."""
        rng = np.random.default_rng(0)

        def draw(number: int) -> Batch:
            films = rng.integers(self.tasks.data.num_items, size=size).tolist()
            lengths = rng.integers(2, 3, size=size, endpoint=True) * self.params.elm24.max_text_tokens // 4
            asked = [[text_of(encoder, 9), Item(film), text_of(encoder, card)] for film in films]
            return encoder.batch(asked, answers=[text_of(encoder, n) for n in lengths.tolist()], pack=True)

        return draw

    def _read(
        self,
        name: str,
        optim: Optim,
        draw: Callable[[int], Batch],
        *,
        frozen: bool = False,
        keep_best: bool = False,
        vocab: int | None = None,
    ) -> Stage:
        """A training in which the LLM reads prompts; `frozen`: beside a Q-Former that is trained."""
        batches = [draw(number) for number in range(DRAWN)]
        largest = max(batches, key=lambda b: b.input_ids.numel())
        make = partial(self._ilm, vocab) if frozen else partial(_all, lambda: LanguageModel(self.llm(vocab)))
        held = memory(make, _loss, largest, optim, keep_best=keep_best, target=self.target)
        with FakeTensorMode():
            model, trained = make()
        load = Load.mean([Load.of(batch) for batch in batches])
        flops = llm_flops(model.llm, load, products=2 if frozen else 3, attention=3)
        if frozen:
            tower, out = model.encoder.qformer, model.encoder.out.weight.numel()
            flops += 3 * (query_flops(tower, load.entities) + 2 * out * load.entities * tower.num_query_tokens)
        learned = sum(p.numel() for p in trained)
        return Stage(name, optim.steps, learned, count(model) - learned, flops * optim.accumulate, held)

    def _ilm(self, vocab: int | None = None) -> tuple[nn.Module, list[nn.Parameter]]:
        llm, d, data = self.llm(vocab), self.params.embeddings.dim, self.tasks.data
        encoder = QFormerEncoder(QFormer(self.params.qformer, d), llm.get_input_embeddings().embedding_dim)
        cf = torch.empty(data.num_items + data.num_users, d)
        return ILM(llm, self.tokenizer, encoder, cf, data.num_items), list(encoder.parameters())


def phase1_batch(params: Params, wanted: tuple[str, ...]) -> dict[str, Any]:
    """The largest batch of phase 1, of texts as long as they may be, or of pairs where no loss reads a text."""
    size, length, d = params.phase1.batch_size, params.qformer.max_text_tokens, params.embeddings.dim
    rows = torch.arange(size)
    if not {"itc", "itg", "itm"} & {*wanted}:
        cf = torch.zeros(size, d)
        return {"kind": wanted[0], "cf_a": cf, "cf_b": cf, "ids_a": rows, "ids_b": rows}
    ids = torch.ones(size, length, dtype=torch.long)
    return {"cf": torch.zeros(size, d), "ids": ids, "entity": rows, "targets": torch.arange(size * (length - 1))}


def text_of(encoder: PromptEncoder, tokens: int) -> str:
    """A text of about so many tokens."""
    return " item" * round(tokens / len(encoder.text_ids(" item")))


def _all(build: Callable[[], nn.Module]) -> tuple[nn.Module, list[nn.Parameter]]:
    return (model := build()), list(model.parameters())


def _loss(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    return {"loss": model(batch) if isinstance(model, LanguageModel) else model(batch, use_cache=False).loss}


# ---------------------------------------------------------------- the command


def hours(flops: float, hardware: str, utilisation: float) -> float:
    """Hours of so many FLOPs on a key of `HARDWARE`, at a utilisation from 0 to 1."""
    chips, peak = HARDWARE[hardware]
    return flops / (chips * peak * utilisation) / 3600


def table(found: Plan, utilisation: float) -> pd.DataFrame:
    """A row a stage: weights in millions, memory in GiB, FLOPs in 10^15, hours."""
    gib = lambda size: "" if size is None else f"{size / 2**30:.2f}"
    parts = ("weights", "gradients", "optimizer", "activations", "peak")
    rows = [
        {
            "stage": s.name,
            "steps": f"{s.steps:,}",
            "trained M": f"{s.trained / 1e6:.1f}",
            "frozen M": f"{s.frozen / 1e6:.1f}",
            **{part: gib(s.memory and getattr(s.memory, part)) for part in parts},
            "PFLOP": f"{s.steps * s.flops / 1e15:,.3g}",
            **{f"h {name}": f"{hours(s.steps * s.flops, name, utilisation):.2g}" for name in HARDWARE},
        }
        for s in found.stages
    ]
    return pd.DataFrame(rows)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, or 1 after a message on stderr, 2 where it is about the arguments."""
    parser = Parser(prog="python -m ilm_lib.plan", description=__doc__)
    parser.add_argument("--profile", default="toy", help="of params/, or a YAML file (default: toy)")
    parser.add_argument("--memory", type=whole(1_000_000), default=80, help="GiB of the device (default: 80)")
    parser.add_argument("--utilisation", type=whole(100), default=40, help="per cent of the peak (default: 40)")
    parser.add_argument("--on", choices=("gpu", "cpu"), default="gpu", help="what trains, for memory (default: gpu)")
    try:
        args = parser.parse_args(arguments)
        print(said(args.profile, args.memory, args.utilisation / 100, args.on))
    except Refusal as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadArgument) else 1
    return 0


def said(profile: str, gib: int, utilisation: float, target: Target) -> str:
    """The plan of a profile in words and a table."""
    found = plan(load_params(profile), target)
    millions = lambda both: f"{both[0] / 1e6:.1f}M weights, {both[1] / 1e6:.1f}M without embeddings of tokens"
    total = sum(stage.steps * stage.flops for stage in found.stages)
    times = ", ".join(f"{hours(total, name, utilisation):.2g} hours of {name}" for name in HARDWARE)
    fits = "fits" if found.peak <= gib * 2**30 else "does not fit; lower batch_size and raise accumulate"
    lines = [
        f"{profile}, on a {target.upper()}. Memory in GiB, hours at {utilisation:.0%} of the peak",
        f"Q-Former: {millions(found.qformer)}. LLM: {millions(found.llm)}",
        table(found, utilisation).to_string(index=False),
        f"in all {times}",
        f"the largest training takes {found.peak / 2**30:.1f} GiB of {gib}: {fits}",
        *found.notes,
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
