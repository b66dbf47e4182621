"""The writing tasks as single turns of a conversation: what is learned beside the ranking, and what is told of it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from ilm_lib import Item
from ilm_lib.sections import Score
from ilm_lib.study.conversation import beside
from ilm_lib.study.single_turns import of_others
from ilm_lib.tasks.dialogues import DialogueTasks, Talk
from ilm_lib.tasks.elm import ElmTasks, evaluate
from ilm_lib.train.score import losses, score_loss, train_score

COLOURS = ("red", "blue", "green", "black")
TALKS = [
    Talk([{"role": "user", "content": f"I want {c}"}, {"role": "assistant", "content": [Item(n)]}], [[n]])
    for n, c in enumerate(COLOURS)
]
ROWS = pd.DataFrame(
    [("colour", n, -1, "Which colour is {film}?", f"It is {c}.", "", "train") for n, c in enumerate(COLOURS)],
    columns=["task", "item", "other", "prompt", "target", "teacher", "split"],
)


@pytest.fixture
def taught(new_talker):
    """A model, and batches of talks with writing tasks beside them."""
    ilm = new_talker(side=None, titles=False)
    tasks = ElmTasks(ROWS, [{}] * len(COLOURS)).asked_of(ilm.tokenizer)
    talks = DialogueTasks.of(ilm).training_batches(ilm.prompts, TALKS, 4, seed=0)
    return ilm, tasks, beside(talks, tasks, ilm, 4, seed=0)


def test_a_step_counts_both_losses_and_the_weight(taught):
    ilm, _, batches = taught
    batch = batches(0)
    assert ilm.tokenizer.decode(batch.answers.input_ids.flatten().tolist()).count("It is ") == 4
    found = losses(ilm, batch, Score(), 0.5)
    twice = losses(ilm, batch, Score(), 1.0)
    assert found["loss"] == twice["loss"] == score_loss(ilm, batch, Score())
    torch.testing.assert_close(2 * found["answers"], twice["answers"])
    assert {*losses(ilm, replace(batch, answers=None), Score(), 0.5)} == {"loss"}
    assert torch.equal(batches(0).answers.input_ids, batch.answers.input_ids), "a batch is a function of its number"


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_tokens_tell_what_was_taught_and_others_do_not(taught, tmp_path, weight):
    ilm, tasks, batches = taught
    settings = Score(steps=80, batch_size=4, lr=0.02, eval_every=80, vector_dropout=0.0)
    train_score(tmp_path, ilm, batches, settings, seed=0, answers_weight=weight)
    nats = lambda rows: float(evaluate(ilm, tasks, rows, max_new_tokens=1)["nll"].mean())
    gain = nats(of_others(ROWS)) - nats(ROWS)
    assert gain > 1 if weight else gain < 0.3


def test_every_prompt_of_others_shows_other_items():
    pairs = [(3, -1), (5, 3), (9, -1), (3, 9)]
    rows = pd.DataFrame(pairs, columns=["item", "other"]).assign(target="as it was")
    shown = of_others(rows)
    assert shown[["item", "other"]].to_numpy().tolist() == [[5, -1], [9, 5], [3, -1], [5, 3]]
    assert (shown["other"] >= 0).tolist() == (rows["other"] >= 0).tolist() and (shown["target"] == "as it was").all()
    assert np.all(shown["item"] != rows["item"])
