import itertools
import re

import numpy as np
import pytest
import torch

from ilm_lib.data.templates import select
from ilm_lib.metrics import ranking_metrics
from ilm_lib.model.decode import beam_search
from ilm_lib.model.prompts import Item, User
from ilm_lib.tasks.openp5 import TASKS, _parse, beam_recall, dev_metrics, rank

EVERYONE = np.arange(9)
BOTH = ("kept", "excluded")


def slots(prompt, kind):
    return [s.row for s in prompt if isinstance(s, kind)]


def text(prompt):
    return "".join(s for s in prompt if isinstance(s, str))


@pytest.fixture(scope="module")
def ilm(new_ilm):
    return new_ilm("qformer")


@pytest.fixture(scope="module")
def drawn(tasks):
    return tasks.draw(np.random.default_rng(0), 3000)


def test_training_draws_each_example_from_the_training_part(tasks, data, drawn):
    row_of = {int(n): row for row, n in enumerate(data.item_index)}
    examples = {TASKS[0]: set(), TASKS[1]: set()}
    for prompt, answer in drawn:
        (user,) = slots(prompt, User)
        target = row_of[int(re.match(r".*item_(\d+)$", answer)[1])]
        training = data.train_sequence(user).tolist()
        position = training.index(target)  # never the dev or test target
        history = slots(prompt, Item)
        assert position >= 1 and f"user_{data.user_index[user]}" in text(prompt)
        if history:
            assert history == training[max(0, position - 4) : position]
            assert re.findall(r"item_(\d+)", text(prompt)) == [str(data.item_index[i]) for i in history]
        examples[TASKS[0] if history else TASKS[1]].add((user, position))
    every = {(u, p) for u in EVERYONE for p in range(1, len(data.train_sequence(u)))}
    assert examples["sequential"] == examples["straightforward"] == every


def test_corpus_is_the_text_of_drawn_prompts_and_answers(tasks, drawn):
    assert tasks.corpus(3000) == [text(prompt) + answer for prompt, answer in drawn]


def test_training_is_uniform_over_tasks_templates_and_examples(tasks, data, drawn):
    sequential = np.mean([bool(slots(p, Item)) for p, _ in drawn])
    assert sequential == pytest.approx(0.5, abs=0.05)
    users = np.bincount([slots(p, User)[0] for p, _ in drawn], minlength=9) / len(drawn)
    examples = np.array([len(data.sequence(u)) - 3 for u in EVERYONE])
    np.testing.assert_allclose(users, examples / examples.sum(), atol=0.04)
    shape = lambda s: re.sub(r"\d+", "1", re.sub(r"item_\d+( , item_\d+)*", "H", s))
    found = {shape(text(p)) for p, _ in drawn}
    filled = lambda t: shape(t.source.format(dataset="Toy", user_id="1", history="item_1"))
    assert found == {filled(t) for task in TASKS for t in select(tasks.templates, task, "seen")}
    assert not found & {filled(t) for task in TASKS for t in select(tasks.templates, task, "unseen")}


def test_draws_depend_on_the_generator_alone(tasks, drawn):
    assert tasks.draw(np.random.default_rng(0), 3000) == drawn != tasks.draw(np.random.default_rng(1), 3000)


def test_training_batches_are_encoded_draws(tasks, ilm):
    batches = tasks.training_batches(ilm.prompts, 6, "target", seed=4)
    batch = batches(3)
    ends = (batch.input_ids == ilm.tokenizer.eos_token_id) & (batch.labels != -100)
    assert ends.sum() == 6 and batch.packed
    assert torch.equal(batch.input_ids, tasks.training_batches(ilm.prompts, 6, "target", seed=4)(3).input_ids)


@pytest.mark.parametrize("split, held_out", [("dev", 2), ("test", 1)])
@pytest.mark.parametrize("which", ["seen", "unseen"])
def test_evaluation_prompts_hold_what_came_before_the_target(tasks, data, split, held_out, which):
    users = np.array([4, 0, 2])
    sequential = tasks.evaluation_prompts("sequential", which, split, users)
    straight = tasks.evaluation_prompts("straightforward", which, split, users)
    for u, asked, plain in zip(users, sequential, straight):
        assert slots(asked, Item) == data.sequence(u)[:-held_out][-4:].tolist() and slots(plain, Item) == []
        assert slots(asked, User) == slots(plain, User) == [u]
        template = select(tasks.templates, "sequential", which)[0]
        history = " , ".join(f"item_{data.item_index[i]}" for i in slots(asked, Item))
        assert text(asked) == template.source.format(dataset="Toy", user_id=data.user_index[u], history=history)
    dev = data.dev_targets()[users]
    assert [d in slots(p, Item) for d, p in zip(dev, sequential)] == [split == "test"] * 3


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["dev", "test"])
def test_rank_answers_for_every_user_in_the_order_asked(ilm, tasks, data, task, split):
    users = np.array([2, 7, 0, 5, 4, 3, 8])  # lengths out of order
    call = lambda u: rank(
        ilm, tasks, task=task, wording="seen", split=split, users=u, history_rules=BOTH, beams=15, batch_size=3
    )
    found = call(users)
    assert set(found) == set(BOTH) and all(r.shape == (7, 15) for r in found.values())
    for at, u in enumerate(users):
        alone = call(np.array([u]))
        seen = set(data.history(u, split).tolist())
        kept, excluded = (found[h][at].tolist() for h in BOTH)
        assert kept == alone["kept"][0].tolist() and sorted(kept) == list(range(15))
        rest = [i for i in kept if i not in seen]  # all of the history is banned, not what the prompt shows
        assert excluded == rest + [-1] * len(seen)
        assert excluded == alone["excluded"][0].tolist()


def test_rank_agrees_with_recommend(ilm, tasks, data):
    found = rank(ilm, tasks, task="sequential", wording="seen", split="test", users=EVERYONE, history_rules=("kept",))
    for u in (1, 5):  # histories that fit the prompt
        history = [Item(int(i)) for i in data.history(u, "test")[-4:]]
        assert [r.item.row for r in ilm.recommend(User(u), history, exclude_history=False)] == found["kept"][u].tolist()


@pytest.fixture(scope="module")
def fluent(new_ilm, tasks):
    """A bare LLM whose next token goes on with some item's answer, as far as the last token tells.

    So it also says things that are no item: 1368 and 689 share a pair of digits, hence item_13689.
    """
    ilm = new_ilm("none", "gpt2")
    likely = torch.zeros(len(ilm.tokenizer), len(ilm.tokenizer))
    for row in range(15):
        answer = list(ilm.prompts.answer_ids(tasks.indexing.answer("{dataset} {target}", row)))
        for here, following in itertools.pairwise(answer):
            likely[here, following] = 30
        for end in (" .", " ?", " ,"):
            likely[ilm.prompts.text_ids(end)[-1], answer[0]] = 30

    def go_on(module, args, kwargs, out):
        out.logits[:, -1] += likely[kwargs["input_ids"][:, -1]]

    ilm.llm.register_forward_hook(go_on, with_kwargs=True)
    return ilm


@pytest.mark.parametrize("task", TASKS)
def test_free_search_finds_what_constrained_search_finds(fluent, tasks, data, task):
    call = lambda constrained: rank(
        fluent,
        tasks,
        task=task,
        wording="seen",
        split="test",
        users=EVERYONE,
        history_rules=BOTH,
        beams=25,
        constrained=constrained,
        batch_size=4,
    )
    free, constrained = call(False), call(True)
    for history in BOTH:
        np.testing.assert_array_equal(free[history], constrained[history])
    assert sorted(free["kept"][0][:15]) == list(range(15)) and set(free["kept"][0][15:]) == {-1}


def test_free_search_drops_what_is_no_item(new_ilm, tasks, data):
    ilm = new_ilm("none")  # random weights: it babbles
    found = rank(
        ilm,
        tasks,
        task="sequential",
        wording="seen",
        split="test",
        users=EVERYONE[:3],
        history_rules=BOTH,
        constrained=False,
    )
    assert all((found[h] == -1).all() for h in BOTH)


def test_an_answer_that_does_not_end_is_no_item(fluent, tasks):
    prefill = fluent.prefill(tasks.evaluation_prompts("sequential", "seen", "test", EVERYONE[:2]))
    item_of_index = {int(n): row for row, n in enumerate(tasks.data.item_index)}
    search = lambda end: beam_search(fluent.llm, prefill, beams=10, eos_id=end, max_new_tokens=fluent.answer_length)
    assert (_parse(fluent, search(fluent.tokenizer.eos_token_id).tokens, item_of_index)[:, 0] >= 0).all()
    assert (_parse(fluent, search(fluent.tokenizer.pad_token_id).tokens, item_of_index) == -1).all()


def test_dev_metrics_are_those_of_both_tasks_together(ilm, tasks, data):
    users = np.array([6, 1, 2, 8])
    settings = {"wording": "seen", "split": "dev", "users": users, "history_rules": ("kept",)}
    tops = np.concatenate([rank(ilm, tasks, task=t, **settings)["kept"] for t in TASKS])
    target = [data.sequence(u)[-2] for u in users] * 2
    hits = np.mean([t in top for t, top in zip(target, tops)])
    found = dev_metrics(ilm, tasks, users)
    assert found["dev HR@10"] == pytest.approx(hits)
    assert found == {f"dev {k}": pytest.approx(v.mean()) for k, v in ranking_metrics(tops, np.array(target)).items()}


@pytest.mark.parametrize("task", TASKS)
def test_a_beam_as_wide_as_the_catalogue_finds_the_true_top_ten(ilm, tasks, task):
    assert beam_recall(ilm, tasks, task=task, users=EVERYONE, beams=15).tolist() == [1.0] * 9
    narrow = beam_recall(ilm, tasks, task=task, users=EVERYONE)
    assert narrow.shape == (9,) and 0.5 < narrow.mean() <= 1


def test_the_catalogue_has_titles_and_the_first_seen_templates(tasks):
    catalogue = tasks.catalogue()
    assert catalogue.titles == [f"Film {i}" for i in range(15)]
    assert catalogue.sequential == select(tasks.templates, "sequential", "seen")[0].source
    assert catalogue.straightforward == select(tasks.templates, "straightforward", "seen")[0].source
