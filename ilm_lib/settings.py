"""Every setting of the study, with its default, what it may be and what it means. `profiles` reads them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from ilm_lib.errors import Refusal
from ilm_lib.methods import METHODS, TRAINED, Loss

Precision = Literal["float32", "bfloat16", "auto"]
#: How a prompt is worded: by a template that training saw, or by the one it did not.
Wording = Literal["seen", "unseen"]
#: What is ranked: all items, or those that the user has not had.
HistoryRule = Literal["kept", "excluded"]
ItemPositions = Literal["shared", "own"]
BatchSize = Annotated[int, Field(gt=1)]


class ParamsError(Refusal, ValueError):
    """A setting is unknown or out of range; the message names it and what is allowed."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Optim(Section):
    """How one training loop runs. Steps are optimiser steps."""

    steps: PositiveInt
    batch_size: BatchSize = 32
    accumulate: PositiveInt = Field(1, description="batches per step, where one of them is all that fits the memory")
    lr: PositiveFloat = 5e-4
    schedule: Literal["linear", "cosine"] = "linear"
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps")
    optimizer: Literal["adafactor", "adamw"] = "adamw"
    weight_decay: float = Field(0.0, ge=0)
    precision: Precision = "float32"


class Data(Section):
    source: Literal["toy", "openp5"] = "toy"
    name: str = Field("Toy", description="the {dataset} of the prompts and of the tables")
    folder: str | None = Field(None, description="OpenP5 form, relative to ILM_DATA_DIR")
    num_items: int = Field(300, ge=50, description="toy only")
    num_users: int = Field(1000, ge=50, description="toy only")
    world_seed: int = Field(0, description="toy only; the world does not change with the run's seed")
    history_max: int = Field(20, gt=0, description="items of history in a prompt, the last ones")
    history_separator: str = " , "
    templates: str | None = Field(None, description="file in OpenP5's prompt.txt form; default: ours")

    @model_validator(mode="after")
    def _folder_for_real_data(self) -> Self:
        if self.source == "openp5" and not self.folder:
            raise ValueError("data.folder is needed with data.source: openp5, e.g. folder: openp5/ML100K")
        return self


class Embeddings(Section):
    engine: Literal["implicit", "irspack"] = "irspack"
    dim: int = Field(64, gt=0)
    regularization: float | None = Field(None, ge=0, description="None: the engine's default")
    unobserved_weight: float = Field(0.1, gt=0, description="iALS alpha0; WALS alpha = 1 + 1 / it")
    iterations: int = Field(16, gt=0)
    file: str | None = Field(None, description="your own .npz or .safetensors with keys user, item")


class SASRec(Optim):
    """The sequential baseline. The defaults did best of those tried on the dev items of Beauty; NDCG@10 there still
    rises with the steps (3,000 steps: .057, 5,000: .068; at lr 1e-3, 3,000 steps: .053)."""

    steps: PositiveInt = 5000
    batch_size: BatchSize = Field(128, description="users")
    lr: PositiveFloat = 3e-3
    precision: Precision = "auto"
    width: int = Field(64, gt=0)
    layers: int = Field(2, gt=0)
    heads: int = Field(2, gt=0)
    dropout: float = Field(0.5, ge=0, lt=1)
    max_length: int = Field(50, gt=0, description="items of history that are read, the last ones")
    eval_every: int = Field(500, gt=0, description="steps between dev evaluations; the best is kept")
    dev_users: int = Field(5000, gt=0)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"sasrec.width {self.width} is not a multiple of sasrec.heads {self.heads}")
        return self


class QFormerParams(Section):
    num_query_tokens: int = Field(8, gt=0)
    layers: int = Field(8, gt=0)
    width: int = Field(768, gt=0)
    heads: int = Field(12, gt=0)
    cross_attention_frequency: int = Field(2, gt=0, description="cross attention in every n-th layer")
    cf_keys: int = Field(1, gt=0, description="keys a CF vector is spread over for cross attention to choose among")
    contrast_dim: int | None = Field(
        256,
        gt=0,
        description="contrasts compare projections of the outputs to that size, as "
        "BLIP-2; None: outputs as they are, equations 1 to 4",
    )
    text_vocab: int = Field(8000, gt=300, description="BPE size when the text tower starts from scratch")
    text_tower: str | None = Field(None, description="folder of a BERT-family checkpoint, 'minilm', or None")
    max_text_tokens: int = Field(64, gt=4)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"qformer.width {self.width} is not a multiple of qformer.heads {self.heads}")
        return self


class Phase1(Optim):
    steps: PositiveInt = 40_000
    batch_size: BatchSize = 256
    lr: PositiveFloat = 3e-5
    schedule: Literal["linear", "cosine"] = "cosine"
    optimizer: Literal["adafactor", "adamw"] = "adafactor"
    losses: tuple[Loss, ...] = ("itc", "itg", "itm", "ui")
    query_selection: Literal["positive", "best"] = Field(
        "best", description="equations 2 and 4 to the letter, or the best query for every pair (BLIP-2)"
    )
    temperature_text: float = Field(0.07, gt=0)
    temperature_negatives: float = Field(
        0.5,
        gt=0,
        description="of the draw of ITM's negatives; at ITC's, as BLIP-2 has it, "
        "a Q-Former that starts from scratch learns no matching",
    )
    temperature_interaction: float = Field(0.3, gt=0)
    center: bool = Field(True, description="subtract the batch mean before the cosine of ii / ui")
    holdout: float = Field(0.1, gt=0, lt=0.5, description="share of every kind of pair kept out of training")

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        if not self.losses or len(set(self.losses)) != len(self.losses):
            raise ValueError("phase1.losses must name at least one loss and none twice")
        return self


class Backbone(Optim):
    steps: PositiveInt = 100_000
    optimizer: Literal["adafactor", "adamw"] = "adafactor"
    pretrained: str | None = Field(None, description="name or folder of a Hugging Face causal LM; None: ours")
    layers: int = Field(8, gt=0)
    width: int = Field(1024, gt=0)
    heads: int = Field(16, gt=0)
    vocab: int = Field(8000, gt=300)
    index_tokens: Literal["pairs", "whole"] = Field(
        "pairs", description="how our LLM reads item_1234: two digits a token, or one token for every item and user"
    )
    seed: int | None = Field(None, description="fix it to share one backbone between seeds; None: the run's seed")


class Phase2(Optim):
    steps: PositiveInt = 50_000
    optimizer: Literal["adafactor", "adamw"] = "adafactor"
    loss_on: Literal["target", "text"] = Field("target", description="the answer only, or the whole text")
    item_positions: ItemPositions = Field("shared", description="where item tokens stand, see prompts.PromptEncoder")
    mlp_tokens: int = Field(1, gt=0, description="soft tokens of the MLP baseline (CoLLM: 1)")
    eval_every: int = Field(1000, gt=0, description="steps between dev evaluations; the best is kept")
    dev_users: int = Field(1000, gt=0)


class Evaluation(Section):
    enabled: bool = Field(True, description="False: the study leaves out notebooks 03, 04, 06, 07 and 09")
    beams: int = Field(10, ge=10)
    wide_beams: tuple[Annotated[int, Field(gt=10)], ...] = Field((), description="wider ones, compared in notebook 06")
    constrained: bool = Field(True, description="beams walk a trie of valid ids; False: free, regex-filtered")
    prompts: tuple[Wording, ...] = ("seen", "unseen")
    histories: tuple[HistoryRule, ...] = ("kept", "excluded")
    batch_size: int = Field(64, gt=0)
    max_users: int | None = Field(None, description="a seeded sample of the users; None: all")
    precision: Precision = "float32"


class Elm24(Section):
    enabled: bool = Field(True, description="False: the study leaves notebook 05 out")
    test_fraction: float = Field(0.1, gt=0, lt=1)
    min_facts: int = Field(0, ge=0, le=3, description="least number of genres, tags and plot on record of a film")
    rows_per_task: int | None = Field(None, description="cap on the test rows of a task")
    phase1_steps: int = Field(259_000, gt=0)
    backbone_steps: int = Field(100_000, gt=0)
    backbone_batch_size: int = Field(32, gt=1)
    backbone_lr: PositiveFloat | None = Field(None, description="None: that of the profile's backbone")
    other_films: str | None = Field(
        None,
        description="a MovieLens release with plots (data/films.py), relative to "
        "ILM_DATA_DIR: its films that are not the profile's teach our "
        "LLM to read; None: the training films do",
    )
    phase2_steps: int = Field(100_000, gt=0)
    mlp_n: bool = Field(False, description="train the MLP with as many tokens as the Q-Former, too (MLP-N)")
    max_new_tokens: int = Field(64, gt=0)
    no_repeat_ngram: int = Field(6, ge=0, description="no text repeats so many tokens in a row; 0: it may")
    max_text_tokens: int = Field(96, gt=0)
    sentence_encoder: str | None = Field(None, description="any sentence-transformers name; None: the packaged one")
    teacher: Literal["template", "hf", "openai"] = Field("template", description="who writes the target texts")
    teacher_model: str | None = Field(None, description="hf: name or folder of a causal LM; openai: its name there")
    teacher_url: str | None = Field(None, description="openai: base URL, e.g. http://localhost:8000/v1")
    teacher_key_env: str | None = Field("OPENAI_API_KEY", description="variable with the API key; None: no key")
    file: str | None = Field(None, description="your own rows, .parquet or JSON lines, relative to ILM_DATA_DIR")

    @model_validator(mode="after")
    def _teacher_can_be_asked(self) -> Self:
        if self.file and (self.teacher != "template" or self.teacher_model or self.teacher_url):
            raise ValueError("elm24.file has its targets already: leave out teacher, teacher_model and teacher_url")
        if self.teacher == "template" and (self.teacher_model or self.teacher_url):
            raise ValueError("elm24.teacher_model and elm24.teacher_url need elm24.teacher: hf or openai")
        if self.teacher != "template" and not self.teacher_model:
            raise ValueError(f"elm24.teacher_model is needed with elm24.teacher: {self.teacher}")
        if (self.teacher == "openai") != bool(self.teacher_url):
            raise ValueError("elm24.teacher_url is needed with elm24.teacher: openai, and with no other")
        if self.teacher_url and not re.fullmatch(r"https?://[^\s@]+", self.teacher_url):
            raise ValueError("elm24.teacher_url starts with http:// or https:// and holds no user or password")
        return self


# What the paper leaves open, each changed alone and measured on dev by notebook 09.
READINGS: dict[str, dict[str, Any]] = {
    "query chosen by the positive pair": {"phase1.query_selection": "positive"},
    "outputs compared as they are": {"qformer.contrast_dim": None},
    "four keys of the CF vector": {"qformer.cf_keys": 4},
    "text temperature 0.02": {"phase1.temperature_text": 0.02},
    "text temperature 0.2": {"phase1.temperature_text": 0.2},
    "matching's negatives at 0.07": {"phase1.temperature_negatives": 0.07},
    "interaction temperature 0.07": {"phase1.temperature_interaction": 0.07},
    "interaction temperature 1": {"phase1.temperature_interaction": 1.0},
    "interaction outputs not centred": {"phase1.center": False},
    "CF dimension 32": {"embeddings.dim": 32},
    "CF dimension 128": {"embeddings.dim": 128},
    "WALS of implicit": {"embeddings.engine": "implicit"},
    "item tokens at positions of their own": {"phase2.item_positions": "own"},
    "an index is read in pairs of digits": {"backbone.index_tokens": "pairs"},
}


class Ablations(Section):
    max_users: int | None = Field(None, description="a seeded sample of the test users; None: all")
    query_tokens: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    backbone_steps: tuple[int, ...] = Field((), description="how long our LLM may read before it is frozen")
    readings: dict[str, dict[str, Any]] = Field(READINGS, description="name: dotted keys to change")
    seeds: int = Field(2, gt=0, description="seeds of embeddings and adapter")
    phase1_steps: int = Field(40_000, gt=0)
    phase2_steps: int = Field(50_000, gt=0)


class Params(Section):
    """All settings of a run. `methods` are those trained and evaluated; `seeds` those reported."""

    profile: str
    seed: int = Field(0, ge=0)
    seeds: tuple[int, ...] = Field((), description="seeds the report covers; empty: just `seed`")
    method: str = "ILM"
    methods: tuple[str, ...] = ("OpenP5-R", "MLP", "ILM-rand", "ILM")
    data: Data = Data()
    embeddings: Embeddings = Embeddings()
    sasrec: SASRec = SASRec()
    qformer: QFormerParams = QFormerParams()
    phase1: Phase1 = Phase1()
    backbone: Backbone = Backbone()
    phase2: Phase2 = Phase2()
    evaluation: Evaluation = Evaluation()
    elm24: Elm24 = Elm24()
    ablations: Ablations = Ablations()

    @model_validator(mode="after")
    def _known_methods(self) -> Self:
        for m in (self.method, *self.methods):
            if m not in TRAINED:
                raise ValueError(f"method {m!r} is unknown; allowed: {', '.join(TRAINED)}")
        if not (self.evaluation.enabled or self.elm24.enabled):
            raise ValueError("evaluation.enabled and elm24.enabled are both false: there is nothing to study")
        return self

    def losses_of(self, method: str) -> tuple[Loss, ...]:
        """Phase-1 losses of a method; ILM takes those of the profile."""
        wanted = METHODS[method].phase1
        return self.phase1.losses if wanted == "profile" else wanted

    @property
    def report_seeds(self) -> tuple[int, ...]:
        return self.seeds or (self.seed,)

    def with_(self, **changes: Any) -> Params:
        """A copy with dotted keys replaced: `params.with_(**{"phase1.steps": 10})`."""
        return validate(merge_dotted(self.model_dump(), changes))


def unknown_key(where: str, key: str, allowed: list[str]) -> str:
    """The message for a key that is not among the allowed ones of a section."""
    close = difflib.get_close_matches(key, allowed, 1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown parameter {where + key!r}.{hint} Allowed: {', '.join(allowed)}"


def merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` in it, nested dicts merged key by key."""
    out = dict(base)
    for key, value in over.items():
        out[key] = merge(out[key], value) if isinstance(value, Mapping) and isinstance(out.get(key), dict) else value
    return out


def merge_dotted(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`merge` of changes by dotted keys, e.g. {"phase1.steps": 10}."""
    for key, value in changes.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        base = merge(base, value)
    return base


def validate(values: Mapping[str, Any]) -> Params:
    """Values as `Params`; raises ParamsError with one line for each key that is unknown or out of range."""
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise ParamsError("\n".join(_explain(e) for e in error.errors())) from None


def _explain(error: Mapping[str, Any]) -> str:
    *path, key = (str(p) for p in error["loc"]) if error["loc"] else ("",)
    where = "".join(f"{p}." for p in path)
    if error["type"] == "extra_forbidden":
        model: Any = Params
        for part in path:
            model = model.model_fields[part].annotation
        return unknown_key(where, key, sorted(model.model_fields))
    return f"parameter {where}{key}: {error['msg']} (got {error['input']!r})" if key else str(error["msg"])
