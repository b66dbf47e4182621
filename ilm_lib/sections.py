"""Sections of the settings that several others build on, and that of the score read-out."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ilm_lib.values import Batch, Count, Rate, Section, Size, distinct

Precision = Literal["float32", "bfloat16", "auto"]
#: How a prompt is worded: by a template that training saw, or by the one it did not.
Wording = Literal["seen", "unseen"]
#: What is ranked: all items, or those that the user has not had.
HistoryRule = Literal["kept", "excluded"]
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
    weight_decay: float = Field(0.0, ge=0, le=10)
    precision: Precision = "float32"


class Score(Optim):
    """The score read-out (`model.scoring`): item encoder and head learn to rank all items, the LLM stays as it is."""

    enabled: bool = Field(True, description="False: the study leaves notebook 10 out")
    steps: Count = 2000
    batch_size: Batch = Field(128, description="users")
    lr: Rate = 3e-3
    precision: Precision = "auto"
    vectors: tuple[VectorKind, ...] = Field(("cf",), description="what an item's vector is made of, end to end")
    dim: Size = Field(64, description="of a query and of a row of the item table")
    free: bool = Field(True, description="a learned part in the table for every item that training meets")
    dropout: float = Field(0.2, ge=0, lt=1, description="on the hidden state")
    vector_dropout: float = Field(0.2, ge=0, lt=1, description="on the vectors that item tokens are made of")
    words: Words = Field("none", description="item tokens alone, each with its title, or in OpenP5's templates")
    user: bool = Field(False, description="the user's slot in front, made of what came before the history shown")
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
    def _some_vectors(self) -> Self:
        distinct("score.vectors", self.vectors, least=1)
        return self
