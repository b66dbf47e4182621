import numpy as np
import pandas as pd
import pytest
import torch

from ilm_lib.baselines import sasrec
from ilm_lib.baselines.sasrec import (
    NextItems,
    load_sasrec,
    new_sasrec,
    pack,
    rivals,
    sasrec_top_k,
    train_sasrec,
    training_batches,
)
from ilm_lib.data import Dataset
from ilm_lib.metrics import hits_at, ndcg_at
from ilm_lib.settings import SASRec

CYCLE = 30
SMALL = dict(
    steps=100,
    batch_size=32,
    lr=5e-3,
    width=32,
    heads=2,
    dropout=0.1,
    max_length=8,
    eval_every=50,
    dev_users=100,
    precision="float32",
)


def world(sequences, num_items, name="Cycle"):
    """A dataset of item rows and nothing else."""
    return Dataset(
        name=name,
        users=[f"u{i}" for i in range(len(sequences))],
        items=[f"i{i}" for i in range(num_items)],
        sequences=np.concatenate(sequences).astype(np.int32),
        offsets=np.cumsum([0, *map(len, sequences)]),
        user_index=np.arange(len(sequences)) + 1,
        item_index=np.arange(num_items) + 1001,
        texts=[{}] * num_items,
        notes={},
        checksums={},
    )


@pytest.fixture(scope="module")
def cycle():
    """120 users who start anywhere and go round: item i + 1 follows item i. Histories of 3 to 20 items."""
    rng = np.random.default_rng(0)
    return world([(rng.integers(CYCLE) + np.arange(n)) % CYCLE for n in rng.integers(3, 21, 120)], CYCLE)


@pytest.fixture(scope="module")
def trained(cycle):
    return train_sasrec(cycle, SASRec(**SMALL), seed=0)


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def everyone(data):
    return np.arange(data.num_users)


# ------------------------------------------------------------ what it learns


def test_it_learns_a_planted_order(cycle, trained):
    model, history = trained
    top = sasrec_top_k(model, cycle, "test", 10, exclude=True, users=everyone(cycle))
    assert hits_at(top, cycle.test_targets(), 1).mean() == 1
    small = sasrec_top_k(model, cycle, "test", 10, exclude=True, users=everyone(cycle), batch_size=7)
    assert np.array_equal(top[:, 0], small[:, 0])  # further down items are near ties, and sums round as they are split
    loss = history[history["name"] == "loss"]["value"].to_numpy()
    assert loss[0] > 5 * loss[-1] and set(history["split"]) == {"train", "heldout"}
    assert {"dev HR@10", "dev NDCG@10"} < set(history["name"]) and not model.training


def test_shuffled_targets_give_chance():
    """Items that follow no order: ten of ninety-odd candidates hold the target by chance in one case of nine."""
    rng = np.random.default_rng(1)
    random = world([rng.permutation(100)[:9] for _ in range(400)], 100)
    model, _ = train_sasrec(random, SASRec(**{**SMALL, "steps": 60, "eval_every": 60}), seed=0)
    top = sasrec_top_k(model, random, "test", 10, exclude=True, users=everyone(random))
    hits = hits_at(top, random.test_targets(), 10)
    assert abs(hits.mean() - 10 / 92) < 4 * np.sqrt(0.1 * 0.9 / 400)


def test_the_best_weights_are_kept(cycle):
    """At this rate the run goes up and down; there are fewer users than dev_users asks for."""
    params = SASRec(**{**SMALL, "steps": 24, "eval_every": 3, "warmup": 0, "lr": 0.3, "dev_users": 1000})
    model, history = train_sasrec(cycle, params, seed=0)
    dev = history[history["name"] == "dev NDCG@10"]["value"]
    top = sasrec_top_k(model, cycle, "dev", 10, exclude=True, users=everyone(cycle))
    assert len(dev) == 8 and ndcg_at(top, cycle.dev_targets(), 10).mean() == pytest.approx(dev.max())


# ------------------------------------------------------------ the loss


EVEN = np.full(CYCLE, 1 / CYCLE)


def test_a_place_is_ranked_against_the_targets_of_all_and_the_items_drawn(trained):
    """By hand, place by place: the own target counts once and as it is, the others by their chance to be there."""
    model, sequences = trained[0], [np.arange(6), np.arange(20, 24)]
    share = torch.arange(1, CYCLE + 1) / 465
    torch.manual_seed(3)
    loss = NextItems(model, share.numpy(), 12)(pack(sequences, 9)[0])
    torch.manual_seed(3)
    there = {*torch.randperm(CYCLE)[:12].tolist(), 1, 2, 3, 4, 5, 21, 22, 23}
    chance = 1 - (1 - share) ** 8 * 18 / 30
    expected = []
    for sequence in sequences:
        logits = model(torch.from_numpy(sequence)[None]).logits[0]
        for place, target in enumerate(sequence[1:]):
            others = sum(logits[place, i].exp() / chance[i] for i in there - {target})
            expected.append((logits[place, target].exp() + others).log() - logits[place, target])
    assert torch.allclose(loss, torch.stack(expected).mean(), atol=1e-4)


def test_rivals_stand_for_all_items():
    """Over many batches whose targets follow the shares every item weighs one on average, popular or not."""
    torch.manual_seed(0)
    share, weight, batches = torch.arange(1, 41) / 820, torch.zeros(40), 4000
    for _ in range(batches):
        targets = torch.multinomial(share, 15, replacement=True)
        items, own, chance = rivals(targets, share, 10)
        assert torch.equal(items[own], targets) and len(items.unique()) == len(items) >= 10
        weight[items] += (-chance).exp() / batches
    assert torch.allclose(weight, torch.ones(40), atol=0.1)


def test_a_small_catalogue_is_ranked_whole(trained):
    batch, _ = pack([np.arange(6), np.arange(20, 24)], 9)
    losses = [NextItems(trained[0], EVEN, n)(batch) for n in (None, CYCLE, CYCLE + 5)]
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])
    assert not torch.equal(losses[0], NextItems(trained[0], EVEN, CYCLE - 1)(batch))


def test_it_learns_the_order_from_a_few_items_drawn(cycle):
    model, _ = train_sasrec(cycle, SASRec(**SMALL, negatives=8), seed=0)
    top = sasrec_top_k(model, cycle, "test", 1, exclude=True, users=everyone(cycle))
    assert hits_at(top, cycle.test_targets(), 1).mean() > 0.95


# ------------------------------------------------------------ what it ranks


@pytest.mark.parametrize("split", ["dev", "test"])
def test_excluded_items_are_never_ranked(cycle, trained, split):
    users = np.array([5, 3, 77])
    top = sasrec_top_k(trained[0], cycle, split, CYCLE, exclude=True, users=users)
    for row, user in zip(top, users):
        seen = set(cycle.history(user, split))
        assert set(row[row >= 0]) == set(range(CYCLE)) - seen and (row[len(row) - len(seen) :] == -1).all()
    kept = sasrec_top_k(trained[0], cycle, split, CYCLE, exclude=False, users=users)
    assert np.array_equal(np.sort(kept, 1), np.tile(np.arange(CYCLE), (3, 1)))


def test_users_come_in_the_order_asked_for(cycle, trained):
    users = np.array([9, 2, 50, 9])
    top = sasrec_top_k(trained[0], cycle, "test", 1, exclude=True, users=users)
    assert np.array_equal(top, sasrec_top_k(trained[0], cycle, "test", 1, exclude=True, users=everyone(cycle))[users])


@torch.no_grad()
def test_neighbours_and_padding_do_not_matter(trained):
    """A history scores the same alone and in a batch, packed beside others or padded."""
    model, rng = trained[0], np.random.default_rng(2)
    histories = [rng.integers(CYCLE, size=n) for n in (1, 8, 2, 5, 8, 3)]

    def scores(given):
        batch, last = pack(given, 9)
        hidden = model.transformer(batch.input_ids, **batch.reading(torch.float32)).last_hidden_state
        return model.lm_head(hidden.flatten(0, 1)[last])

    together = scores(histories)
    plain = torch.cat([model(torch.from_numpy(h)[None]).logits[:, -1] for h in histories])
    assert pack(histories, 9)[0].segment.max() > 1  # some share a row
    assert torch.allclose(together, plain, atol=1e-4)
    assert torch.allclose(scores([histories[1], histories[0]]), plain[[1, 0]], atol=1e-4)  # one of them padded


def test_only_the_last_items_are_read(trained):
    """Histories that agree in their last eight items rank alike; so does a user with a single training item."""
    long, short = np.arange(20), np.array([4, 5, 6])
    data = world([long, np.r_[long[9:12], long[9:]], short], CYCLE)
    top = sasrec_top_k(trained[0], data, "test", 1, exclude=False, users=everyone(data))
    assert top[0, 0] == top[1, 0] == 19
    assert sasrec_top_k(trained[0], data, "dev", 1, exclude=True, users=np.array([2]))[0, 0] == 5


# ------------------------------------------------------------ batches


def test_windows_lie_in_the_training_sequences(cycle):
    params = SASRec(**SMALL)
    batches, starts = training_batches(cycle, params, 0), set()
    for number in range(30):
        batch = batches(number)
        for row, segment in zip(batch.input_ids.numpy(), batch.segment.numpy()):
            for n in range(1, segment.max() + 1):
                window = row[segment == n]
                assert 2 <= len(window) <= params.max_length + 1 and (np.diff(window) % CYCLE == 1).all()
                starts.add(len(window))
        assert len(batch.targets) == (batch.segment > 0).sum() - sum(batch.segment.amax(1))  # all but the first ones
        places = batch.input_ids.flatten()
        assert torch.equal((places[batch.scored] + 1) % CYCLE, batch.targets)
        assert torch.equal(batches(number).input_ids, batch.input_ids)  # a function of the number alone
    assert starts == set(range(2, params.max_length + 2))


def test_held_out_items_are_never_trained_on():
    """Every user ends with items that nobody else has."""
    data = world([np.r_[u % 3, np.arange(3, 9 + u % 2), 10 + 2 * u, 11 + 2 * u] for u in range(20)], 50)
    batches = training_batches(data, SASRec(**SMALL), 0)
    assert max(int(batches(n).input_ids.max()) for n in range(20)) < 10


def test_short_users_are_left_out_or_refused():
    short, long = np.arange(3), np.arange(5)
    batch = training_batches(world([short, long, short], 5), SASRec(**SMALL), 0)(0)
    assert batch.input_ids.shape == (1, 3)
    with pytest.raises(ValueError, match="Cycle: no user has two training items"):
        training_batches(world([short, short], 5), SASRec(**SMALL), 0)


# ------------------------------------------------------------ seeds and state


@pytest.mark.parametrize("negatives", [None, 8])
def test_equal_seeds_give_equal_weights(cycle, negatives):
    params = SASRec(**{**SMALL, "steps": 12, "eval_every": 6, "negatives": negatives})
    (a, first), (b, second), (c, _) = (train_sasrec(cycle, params, seed=s) for s in (0, 0, 1))
    assert equal(weights(a), weights(b)) and not equal(weights(a), weights(c))
    pd.testing.assert_frame_equal(first, second)


@pytest.mark.parametrize("negatives", [None, 8])
def test_a_resumed_run_ends_as_an_uninterrupted_one(cycle, tmp_path, monkeypatch, negatives):
    params = SASRec(**{**SMALL, "steps": 20, "eval_every": 5, "negatives": negatives})
    state = tmp_path / "state.safetensors"
    whole, history = train_sasrec(cycle, params, seed=0)
    with monkeypatch.context() as patch:

        def batches(*args):
            draw = training_batches(*args)
            return lambda n: draw(n) if n < 13 else (_ for _ in ()).throw(KeyboardInterrupt)

        patch.setattr(sasrec, "training_batches", batches)
        with pytest.raises(KeyboardInterrupt):
            train_sasrec(cycle, params, seed=0, state=state)
    assert state.exists()
    resumed, rest = train_sasrec(cycle, params, seed=0, state=state)
    assert equal(weights(whole), weights(resumed))
    pd.testing.assert_frame_equal(history, rest)


def test_a_saved_model_ranks_as_before(cycle, trained, tmp_path):
    trained[0].save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists() and (tmp_path / "config.json").exists()
    asked = dict(split="test", k=10, exclude=True, users=everyone(cycle))
    assert np.array_equal(sasrec_top_k(load_sasrec(tmp_path), cycle, **asked), sasrec_top_k(trained[0], cycle, **asked))


def test_items_have_one_table():
    model = new_sasrec(50, SASRec(**SMALL))
    assert model.lm_head.weight is model.transformer.wte.weight and model.lm_head.weight.shape == (50, 32)


@pytest.mark.parametrize("asked, std", [({}, 1 / 8), ({"table_std": 0.02}, 0.02)])
def test_the_table_is_as_wide_as_asked(asked, std):
    """The other weights are GPT-2's all the same."""
    model = new_sasrec(2000, SASRec(width=64, **asked))
    assert model.lm_head.weight.std().item() == pytest.approx(std, rel=0.02)
    assert model.transformer.h[0].attn.c_attn.weight.std().item() == pytest.approx(0.02, rel=0.05)


# ------------------------------------------------------------ in the study


def test_the_study_ranks_with_it_under_both_history_rules(tmp_path, monkeypatch):
    from ilm_lib import load_params
    from ilm_lib.study import inputs, openp5_results
    from ilm_lib.study import openp5 as study_openp5
    from ilm_lib.study.artifacts import MissingStage

    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path))
    params = load_params(
        "toy", **{"data.num_users": 60, "data.num_items": 80, "sasrec.steps": 4, "sasrec.eval_every": 2}
    )
    data = inputs.data(params, build=True)
    with pytest.raises(MissingStage, match="sasrec.*notebooks/02_embeddings.ipynb"):
        study_openp5.evaluation(params, 0, "SASRec")
    artifact = study_openp5.sasrec(params, 0, build=True)
    assert not artifact.path("state.safetensors").exists() and len(pd.read_parquet(artifact.path("log.parquet")))
    ranked = study_openp5.evaluation(params, 0, "SASRec", build=True)
    rows = openp5_results.result_rows(params, ranked, "SASRec", 0)
    model, loaded = load_sasrec(artifact.path("sasrec")), Dataset.open(data.path("dataset"))
    for history in ("kept", "excluded"):
        top = sasrec_top_k(model, loaded, "test", 10, exclude=history == "excluded", users=everyone(loaded))
        found = rows[(rows["history"] == history) & (rows["task"] == "both") & (rows["metric"] == "HR@10")]["value"]
        assert found.to_numpy() == pytest.approx(hits_at(top, loaded.test_targets(), 10).mean())
