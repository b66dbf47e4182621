"""Sections of the settings: what trainings have in common, the data, the score read-out. `settings` has the others."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ilm_lib.explain import Wrong
from ilm_lib.values import Batch, Count, Few, Moment, Name, Place, Rate, Section, Seed, Separator, Share, Size, distinct

Precision = Literal["float32", "bfloat16", "auto"]
#: How a prompt is worded: by a template that training saw, or by the one it did not.
Wording = Literal["seen", "unseen"]
#: What is ranked: all items, or those that the user has not had.
HistoryRule = Literal["kept", "excluded"]
#: Which of a user's items in a period is asked for, where a date splits.
Target = Literal["first", "last"]
ItemPositions = Literal["shared", "slot", "own"]
#: Vectors that an item may have: of who had what, of a sequential recommender, of its text.
VectorKind = Literal["cf", "sasrec", "text"]
#: How what items a prompt names is read off the LLM: it writes their names, or all are scored at once.
Readout = Literal["beam", "score"]
#: What a score is read off, and how a history is put: see `model.scoring`.
Context = Literal["llm", "last", "mean"]
Words = Literal["none", "title", "template"]
#: Which LLM reads: the frozen one, or for comparison one of its size with random weights, frozen or trained.
Reader = Literal["frozen", "random", "trained"]


class Optim(Section):
    """How one training loop runs. Steps are optimiser steps."""

    steps: Count
    batch_size: Batch = 32
    accumulate: Count = Field(1, description="batches per step, where one of them is all that fits the memory")
    lr: Rate = 5e-4
    schedule: Literal["linear", "cosine"] = "linear"
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps")
    optimizer: Literal["adafactor", "adamw"] = "adamw"
    relative: bool = Field(True, description="adafactor: steps are shares of the weights' size; False: of `lr`'s")
    weight_decay: float = Field(0.0, ge=0, le=10)
    precision: Precision = "float32"

    @model_validator(mode="after")
    def _relative_is_adafactors(self) -> Self:
        if not self.relative and self.optimizer != "adafactor":
            raise Wrong("relative: false is read with optimizer: adafactor alone; leave one of them out")
        return self


class Data(Section):
    """Where the data come from, how they enter a prompt, and what is held out of training."""

    source: Literal["toy", "openp5"] = "toy"
    name: Name = Field("Toy", description="the {dataset} of the prompts and of the tables")
    folder: Place | None = Field(None, description="OpenP5 form, relative to ILM_DATA_DIR")
    num_items: int = Field(300, ge=80, le=10_000, description="toy only")
    num_users: int = Field(1000, ge=50, le=1_000_000, description="toy only")
    world_seed: Seed = Field(0, description="toy only; the world does not change with the run's seed")
    history_max: Count = Field(20, description="items of history in a prompt, the last ones")
    history_separator: Separator = " , "
    templates: Place | None = Field(None, description="file in OpenP5's prompt.txt form; default: ours")
    split: Literal["leave_one_out", "temporal"] = Field(
        "leave_one_out",
        description="held out are a user's last two items, or what comes after a date (data/temporal.py)",
    )
    dev_from: Moment = Field(0.8, description="temporal: training ends here, at a share of all interactions or a date")
    test_from: Moment = Field(0.9, description="temporal: the test period starts here")
    target: Target = Field("first", description="temporal: a user's first or last item of each period is asked for")
    whole_catalogue: bool = Field(False, description="items of the index file that nobody had are items, too")
    cold_items: Share | None = Field(
        None, description="share of the items, of those with a text, that is in no interaction (data/cold.py)"
    )

    @model_validator(mode="after")
    def _of_one_source(self) -> Self:
        if self.source == "toy":
            if self.folder:
                raise ValueError("data.folder is read with data.source: openp5 alone; add the source or leave it out")
            if self.num_items * self.num_users > 10**8:
                raise ValueError("data.num_items times data.num_users is more than 100,000,000; lower one of them")
            return self
        if not self.folder:
            raise ValueError("data.folder is needed with data.source: openp5, e.g. folder: openp5/ML100K")
        if "name" not in self.model_fields_set:
            raise ValueError("data.name is needed with data.source: openp5; prompts and tables call the data so")
        for key in ("num_items", "num_users", "world_seed"):  # a default is said by files that hold every setting
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"data.{key} is of the toy world alone; leave it out with data.source: openp5")
        return self

    @model_validator(mode="after")
    def _periods_follow(self) -> Self:
        early: Any = self.dev_from
        late: Any = self.test_from
        if self.split == "leave_one_out":
            for key in ("dev_from", "test_from", "target"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"data.{key} is read with data.split: temporal alone; add it or leave {key} out")
        elif self.source == "toy":
            raise ValueError("data.split: temporal needs times, and the toy world has none; leave it out")
        elif type(early) is not type(late) or early >= late:
            raise ValueError(
                f"data.dev_from {early} does not come before data.test_from {late}; give two shares "
                "of the interactions that rise, or two dates"
            )
        return self


class Score(Optim):
    """The score read-out (`model.scoring`): item encoder and head learn to rank all items, the LLM stays as it is."""

    steps: Count = 2000
    batch_size: Batch = Field(128, description="users")
    lr: Rate = 3e-3
    precision: Precision = "auto"
    vectors: tuple[VectorKind, ...] = Field(("cf",), description="what an item's vector is made of, end to end")
    text_dim: Size = Field(64, description="of a text's part: the principal components of the sentence vectors")
    dim: Size = Field(64, description="of a query, a row of the item table, and the side network")
    side_layers: int = Field(2, ge=0, le=64, description="of the network that reads the hidden states; 0: none")
    side_heads: Few = Field(2, description="its attention heads")
    layers: Literal["last", "all"] = Field("all", description="whose hidden states are read: of the last, or of all")
    free: bool = Field(True, description="a learned part of the vector of every item that training meets")
    free_std: float = Field(0.0, ge=0, le=10, description="of that part at first, beside given vectors of RMS 1")
    dropout: float = Field(0.2, ge=0, lt=1, description="on the hidden state")
    vector_dropout: float = Field(0.2, ge=0, lt=1, description="on the vectors that item tokens are made of")
    cold_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of a step's items that are shown as new ones, by their texts alone"
    )
    words: Words = Field("none", description="item tokens alone, each with its title, or in OpenP5's templates")
    user: bool = Field(False, description="the user's slot in front, made of what came before the history shown")
    user_half_life: float = Field(
        0.0, ge=0, le=10_000, description="in a user's vector an item counts half after so many more; 0: all alike"
    )
    history_max: Count = Field(50, description="items of a history in a prompt, the last ones")
    item_positions: ItemPositions = Field("slot", description="where item tokens stand, see prompts.PromptEncoder")
    places: Literal["every", "last"] = Field("every", description="the loss after every item, or after the last alone")
    context: Context = Field("llm", description="what a score is read off; 'last' and 'mean' leave the LLM out")
    llm: Reader = Field("frozen", description="the profile's; with random weights in its place; or such, trained along")
    sampled_above: Count = Field(5_000, description="with more items than that the softmax is over rivals alone")
    negatives: Count = Field(512, description="rivals drawn besides the targets of a step (kernels.rivals)")
    eval_every: Count = Field(250, description="steps between dev evaluations; the best is kept")
    dev_users: Count = 5000

    @model_validator(mode="after")
    def _fits(self) -> Self:
        distinct("score.vectors", self.vectors, least=1)
        if self.cold_dropout and "text" not in self.vectors:
            raise ValueError("score.cold_dropout shows items by their texts alone; add 'text' to score.vectors")
        if self.side_layers and self.dim % self.side_heads:
            raise ValueError(f"score.dim {self.dim} is no multiple of score.side_heads {self.side_heads}")
        return self


class Chat(Optim):
    """A model that reads dialogues (`model.dialogue`): item encoder and head learn, the LLM stays as it is."""

    enabled: bool = Field(False, description="False: the study leaves notebook 11 out")
    steps: Count = 300
    batch_size: Batch = Field(8, description="dialogues")
    lr: Rate = 1e-3
    weight_decay: float = Field(0.1, ge=0, le=10)
    precision: Precision = "auto"
    teach: Count = Field(1000, description="users whose simulated seekers teach; a tenth of them choose the weights")
    ask: Count = Field(400, description="users whose simulated seekers are asked, none of whom teaches")
    recorded: Literal["redial"] | None = Field(
        None, description="recorded dialogues that teach as well, and in which others are asked (data/conversations.py)"
    )
    elm_weight: float = Field(
        0.0, ge=0, le=10, description="of the loss on the 24 writing tasks, asked as single turns, beside the ranking's"
    )
    write: Count = Field(40, description="replies of the model that are written out and measured")
    turns: Few = Field(5, description="of recommendations in a conversation")
    shown: Few = Field(3, description="films in each")
    titles: bool = Field(True, description="an item's title stands before its tokens")
    system: str = Field("You recommend films to a friend, and say in a short sentence why.", max_length=1000)
    history_max: Count = Field(50, description="slots of a prompt, the last ones")
    likeness: int = Field(
        64, ge=0, le=65_536, description="size of the maps by which the seeker's vector asks without the LLM; 0: none"
    )
    dim: Size = Field(64, description="of a query, a row of the item table, and the side network")
    layers: Literal["last", "all"] = Field("all", description="whose hidden states are read: of the last, or of all")
    side_layers: int = Field(2, ge=0, le=64, description="of the network that reads the hidden states; 0: none")
    side_heads: Few = Field(2, description="its attention heads")
    dropout: float = Field(0.5, ge=0, lt=1, description="on the hidden state")
    vector_dropout: float = Field(0.2, ge=0, lt=1, description="on the vectors that item tokens are made of")
    eval_every: Count = Field(100, description="steps between dev evaluations; the best is kept")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.side_layers and self.dim % self.side_heads:
            raise ValueError(f"chat.dim {self.dim} is no multiple of chat.side_heads {self.side_heads}")
        return self
