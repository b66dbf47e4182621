"""Every setting of the study, with its default, what it may be and what it means. `profiles` reads them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from ilm_lib.errors import Refusal
from ilm_lib.explain import explain
from ilm_lib.methods import METHODS, TRAINED, Loss
from ilm_lib.sections import Chat, Data, HistoryRule, ItemPositions, Optim, Precision, Readout, Score, Wording
from ilm_lib.values import (
    Batch,
    Count,
    Few,
    Name,
    Place,
    ProfileName,
    Rate,
    Section,
    Seed,
    Share,
    Size,
    Temperature,
    distinct,
    merge_dotted,
    server,
)  # fmt: skip


class ParamsError(Refusal, ValueError):
    """A setting is unknown or out of range; the message names it and what is allowed."""


class Embeddings(Section):
    engine: Literal["implicit", "irspack"] = "irspack"
    dim: Size = 64
    regularization: float | None = Field(None, ge=0, le=1_000, description="None: the engine's default")
    unobserved_weight: float = Field(0.1, ge=1e-6, le=100, description="iALS alpha0; WALS alpha = 1 + 1 / it")
    iterations: Count = 16
    file: Place | None = Field(None, description="your own .npz or .safetensors with keys user, item")

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if self.file and not self.file.endswith((".npz", ".safetensors")):
            raise ValueError("embeddings.file is neither .npz nor .safetensors; store arrays user and item in one")
        return self


class SASRec(Optim):
    steps: Count = 3000
    batch_size: Batch = Field(256, description="users")
    lr: Rate = 3e-3
    weight_decay: float = Field(0.2, ge=0, le=10)
    precision: Precision = "auto"
    width: Size = 64
    layers: Few = 2
    heads: Few = 2
    dropout: float = Field(0.5, ge=0, lt=1)
    max_length: Size = Field(50, description="items of history that are read, the last ones")
    negatives: Size | None = Field(512, description="items drawn besides a step's targets; None, or no more there: all")
    table_std: float | None = Field(None, gt=0, le=10, description="of the fresh item table; None: 1 / sqrt(width)")
    eval_every: Count = Field(500, description="steps between dev evaluations; the best is kept")
    dev_users: Count = 5000


class QFormerParams(Section):
    num_query_tokens: Few = 8
    layers: Few = 8
    width: Size = 768
    heads: Few = 12
    inner: Size | None = Field(None, description="width inside the feed-forward blocks; None: four times `width`")
    cross_attention_frequency: Few = Field(2, description="cross attention in every n-th layer")
    cf_keys: Few = Field(1, description="keys a CF vector is spread over for cross attention to choose among")
    contrast_dim: Size | None = Field(
        256,
        description="contrasts compare projections of the outputs to that size, as "
        "BLIP-2; None: outputs as they are, equations 1 to 4",
    )
    text_vocab: int = Field(8000, gt=300, le=1_000_000, description="BPE size when the text tower starts from scratch")
    text_tower: Place | None = Field(None, description="folder of a BERT-family checkpoint, 'minilm', or None")
    max_text_tokens: int = Field(64, gt=4, le=65_536)

    @model_validator(mode="after")
    def _inner_is_the_checkpoints(self) -> Self:
        if self.text_tower and self.inner not in (None, 4 * self.width):
            raise ValueError("qformer.inner is that of the checkpoint with qformer.text_tower; leave it out")
        return self


class Phase1(Optim):
    steps: Count = 40_000
    batch_size: Batch = 256
    lr: Rate = 3e-5
    schedule: Literal["linear", "cosine"] = "cosine"
    optimizer: Literal["adafactor", "adamw"] = "adafactor"
    losses: tuple[Loss, ...] = ("itc", "itg", "itm", "ui")
    query_selection: Literal["positive", "best"] = Field(
        "best", description="equations 2 and 4 to the letter, or the best query for every pair (BLIP-2)"
    )
    temperature_text: Temperature = 0.07
    temperature_negatives: Temperature = Field(
        0.5,
        description="of the draw of ITM's negatives; at ITC's, as BLIP-2 has it, "
        "a Q-Former that starts from scratch learns no matching",
    )
    temperature_interaction: Temperature = 0.3
    center: bool = Field(True, description="subtract the batch mean before the cosine of ii / ui")
    holdout: float = Field(0.1, ge=0.001, lt=0.5, description="share of every kind of pair kept out of training")

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        distinct("phase1.losses", self.losses, least=1)
        return self


class Backbone(Optim):
    steps: Count = 100_000
    optimizer: Literal["adafactor", "adamw"] = "adafactor"
    pretrained: Place | None = Field(None, description="name or folder of a Hugging Face causal LM; None: ours")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of a named LLM's weights; auto: its own")
    recompute: bool = Field(False, description="a named LLM's layers are read again on the way back: less memory")
    sharded: bool = Field(False, description="of several processes each keeps a part of a named LLM's layers")
    layers: Few = 8
    width: Size = 1024
    heads: Few = 16
    inner: Size | None = Field(None, description="width inside the gated feed-forward blocks; None: twice `width`")
    vocab: int = Field(8000, gt=300, le=1_000_000)
    index_tokens: Literal["pairs", "whole"] = Field(
        "pairs", description="how our LLM reads item_1234: two digits a token, or one token for every item and user"
    )
    seed: Seed | None = Field(None, description="fix it to share one backbone between seeds; None: the run's seed")

    @model_validator(mode="after")
    def _heads_are_even(self) -> Self:
        if self.width // self.heads % 2:  # positions turn pairs of numbers
            raise ValueError(f"backbone.width {self.width} over backbone.heads {self.heads} is odd; give an even share")
        return self


class Phase2(Optim):
    steps: Count = 50_000
    optimizer: Literal["adafactor", "adamw"] = "adafactor"
    loss_on: Literal["target", "text"] = Field("target", description="the answer only, or the whole text")
    item_positions: ItemPositions = Field("shared", description="where item tokens stand, see prompts.PromptEncoder")
    mlp_tokens: Few = Field(1, description="soft tokens of the MLP baseline (CoLLM: 1)")
    eval_every: Count = Field(1000, description="steps between dev evaluations; the best is kept")
    dev_users: Count = 1000


class Evaluation(Section):
    enabled: bool = Field(True, description="False: the study leaves out notebooks 03, 04, 06, 07, 09 and 10")
    readouts: tuple[Readout, ...] = Field(
        ("beam", "score"), description="how what item tokens know is read: beam, notebooks 04 to 09; score, notebook 10"
    )
    beams: int = Field(10, ge=10, le=10_000)
    wide_beams: tuple[Annotated[int, Field(gt=10, le=10_000)], ...] = Field(
        (), description="wider ones, compared in notebook 06"
    )
    constrained: bool = Field(True, description="beams walk a trie of valid ids; False: free, regex-filtered")
    prompts: tuple[Wording, ...] = ("seen", "unseen")
    histories: tuple[HistoryRule, ...] = ("kept", "excluded")
    batch_size: Count = 64
    max_users: Count | None = Field(None, description="a seeded sample of the users; None: all")
    precision: Precision = "float32"

    @model_validator(mode="after")
    def _some_of_each(self) -> Self:
        distinct("evaluation.readouts", self.readouts, least=1)
        distinct("evaluation.prompts", self.prompts, least=1)
        distinct("evaluation.histories", self.histories, least=1)
        distinct("evaluation.wide_beams", self.wide_beams)
        return self


class Elm24(Section):
    enabled: bool = Field(True, description="False: the study leaves notebook 05 out")
    test_fraction: Share = 0.1
    min_facts: int = Field(0, ge=0, le=3, description="least number of genres, tags and plot on record of a film")
    rows_per_task: Count | None = Field(None, description="cap on the test rows of a task")
    phase1_steps: Count = 259_000
    backbone_steps: Count = 100_000
    backbone_batch_size: Batch = 32
    backbone_lr: Rate | None = Field(None, description="None: that of the profile's backbone")
    other_films: Place | None = Field(
        None,
        description="a MovieLens release with plots (data/films.py), relative to "
        "ILM_DATA_DIR: its films that are not the profile's teach our "
        "LLM to read; None: the training films do",
    )
    phase2_steps: Count = 100_000
    mlp_n: bool = Field(False, description="train the MLP with as many tokens as the Q-Former, too (MLP-N)")
    system: str | None = Field(None, description="system prompt of an LLM that chats; None: what its template says")
    tuned: bool = Field(
        False,
        description="also what the LLM writes untrained without the film, and with trained tokens before its words",
    )
    kept: bool = Field(
        False, description="also what the LLM knows afterwards (study/kept.py), beside the same LLM trained along"
    )
    max_new_tokens: Size = 64
    no_repeat_ngram: int = Field(6, ge=0, description="no text repeats so many tokens in a row; 0: it may")
    max_text_tokens: int = Field(96, gt=4, le=65_536)
    sentence_encoder: Place | None = Field(None, description="any sentence-transformers name; None: the packaged one")
    teacher: Literal["template", "hf", "openai"] = Field("template", description="who writes the target texts")
    teacher_model: Place | None = Field(None, description="hf: name or folder of a causal LM; openai: its name there")
    teacher_url: str | None = Field(None, description="openai: base URL, e.g. http://localhost:8000/v1")
    teacher_key_env: str | None = Field("OPENAI_API_KEY", description="variable with the API key; None: no key")
    file: Place | None = Field(None, description="your own rows, .parquet or JSON lines, relative to ILM_DATA_DIR")

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
        if self.teacher_url:
            server("elm24.teacher_url", self.teacher_url)
        if self.teacher_key_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", self.teacher_key_env, re.ASCII):
            raise ValueError("elm24.teacher_key_env is the name of a variable that holds the key, and not the key")
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


# What the score read-out may do without, each changed alone and measured on dev by notebook 10.
SCORED: dict[str, dict[str, Any]] = {
    "LLM off: the last item alone": {"score.context": "last"},
    "LLM off: the mean of all items": {"score.context": "mean"},
    "LLM of random weights": {"score.llm": "random"},
    "transformer of its size, trained": {"score.llm": "trained"},
    "loss after the last item alone": {"score.places": "last"},
    "every token at a position of its own": {"score.item_positions": "own"},
    "titles beside the tokens": {"score.words": "title"},
    "OpenP5's templates": {"score.words": "template", "score.item_positions": "shared"},
    "user in front": {"score.user": True},
    "the last layer alone": {"score.layers": "last"},
    "no side network": {"score.side_layers": 0},
    "no side network, LLM off": {"score.side_layers": 0, "score.context": "last"},
    "no free part of the vectors": {"score.free": False},
    "one token an item": {"qformer.num_query_tokens": 1},
    "texts beside the factors": {"score.vectors": ["cf", "text"]},
    "SASRec's vectors and texts": {"score.vectors": ["sasrec", "text"]},
}


class Ablations(Section):
    max_users: Count | None = Field(None, description="a seeded sample of the test users; None: all")
    query_tokens: tuple[Few, ...] = (1, 2, 4, 8, 16, 32)
    backbone_steps: tuple[Count, ...] = Field((), description="how long our LLM may read before it is frozen")
    readings: dict[Name, dict[str, Any]] = Field(READINGS, description="name: dotted keys to change")
    scored: dict[Name, dict[str, Any]] = Field(SCORED, description="as readings, of the score read-out (notebook 10)")
    seeds: Few = Field(2, description="seeds of embeddings and adapter")
    compared_seeds: Few | None = Field(
        None, description="notebook 10: seeds of the other methods over the LLM and of ILM beside them; null: all"
    )
    phase1_steps: Count = 40_000
    phase2_steps: Count = 50_000

    @model_validator(mode="after")
    def _none_twice(self) -> Self:
        distinct("ablations.query_tokens", self.query_tokens, least=1)
        distinct("ablations.backbone_steps", self.backbone_steps)
        return self


class Params(Section):
    """All settings of a run. `methods` are those trained and evaluated; `seeds` those reported."""

    profile: ProfileName
    seed: Seed = 0
    seeds: tuple[Seed, ...] = Field((), description="seeds the report covers; empty: just `seed`")
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
    score: Score = Score()
    elm24: Elm24 = Elm24()
    chat: Chat = Chat()
    ablations: Ablations = Ablations()

    @model_validator(mode="after")
    def _known_methods(self) -> Self:
        for m in (self.method, *self.methods):
            if m not in TRAINED:
                raise ValueError(f"method {m[:40]!r} is unknown; allowed: {', '.join(TRAINED)}")
        distinct("methods", self.methods, least=1)
        distinct("seeds", self.seeds)
        if not (self.evaluation.enabled or self.elm24.enabled or self.chat.enabled):
            raise ValueError("evaluation, elm24 and chat all have enabled: false: there is nothing to study")
        return self

    def losses_of(self, method: str) -> tuple[Loss, ...]:
        """Phase-1 losses of a method; ILM takes those of the profile."""
        wanted = METHODS[method].phase1
        return self.phase1.losses if wanted == "profile" else wanted

    @property
    def report_seeds(self) -> tuple[int, ...]:
        return self.seeds or (self.seed,)

    def with_(self, **changes: Any) -> Params:
        """A copy with dotted keys replaced: `params.with_(**{"phase1.steps": 10})`; ParamsError as `load_params`."""
        return validate(merge_dotted(self.model_dump(), changes))


def validate(values: Mapping[str, Any], place: Callable[[tuple[Any, ...]], str] = lambda key: "") -> Params:
    """Values as `Params`.

    Args:
        place: where a key stands, to go before the message, e.g. "mine.yaml:4: " for ("phase1", "steps").

    Raises:
        ParamsError: a key is unknown or out of range; what is wrong with the first, and which others there are.
    """
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise ParamsError(explain(error.errors(), Params, place)) from None
