import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CF, ITEMS, USERS

from ilm_lib.model.backbone import weights_fingerprint
from ilm_lib.model.fold_in import FoldIn
from ilm_lib.model.history import HistoryPrompt
from ilm_lib.model.ilm import ILM
from ilm_lib.model.prompts import Item, User
from ilm_lib.model.refusals import ModelFolderError, WrongValue
from ilm_lib.model.scoring import ScoreHead, top_items
from ilm_lib.sections import Score
from ilm_lib.tasks.scoring import NO_LOSS, ScoringTasks, dev_metrics, next_items, rank
from ilm_lib.train.score import score_loss, train_score

KINDS = ["llama", "gpt2", "qwen2", "gemma3", "opt", "gpt_neox", "bloom"]
FOLD = FoldIn(unobserved=0.1, observed=1.0, ridge=0.01, ridge_per_item=0.01, item_scale=1.0, user_scale=1.0)


SIDE = {"layers": 1, "heads": 2}


@pytest.fixture(scope="module")
def new_scorer(new_ilm):
    """new_scorer("gpt2", encoder="qformer", words="title", ...): an ILM with a head, of random weights."""

    def make(
        llm="llama",
        *,
        encoder="mlp",
        positions="slot",
        free=True,
        context="llm",
        last=False,
        side=SIDE,
        seed=0,
        **prompt,
    ):
        bare = new_ilm(encoder, llm, seed=seed)
        torch.manual_seed(seed)
        states = 1 if last or context != "llm" else bare.llm.config.get_text_config().num_hidden_layers + 1
        shown = HistoryPrompt(**{"history_max": 4} | prompt)
        sizes = {"states": states, "side": side, "dim": 8}
        head = ScoreHead(32, CF, ITEMS, **sizes, free=free, context=context, prompt=shown)
        torch.nn.init.normal_(head.bias)
        if free:
            torch.nn.init.normal_(head.free, std=0.3)
        fold = FOLD if head.prompt.shows_users else None
        return ILM(bare.llm, bare.tokenizer, bare.encoder, bare.cf, ITEMS, bare.catalogue, positions, fold, head).eval()

    return make


def tasks_of(ilm, data):
    return ScoringTasks(data, ilm.catalogue, ilm.cf, ilm.head.prompt, [ilm.catalogue.sequential], ilm.fold_in)


# ---------------------------------------------------------------- the head


@pytest.mark.parametrize("side", [None, SIDE])
def test_a_score_is_the_product_of_query_and_row_and_a_bias(new_scorer, side):
    head, vectors = new_scorer(side=side).head, torch.randn(ITEMS, CF)
    states = torch.randn(3, head.query.in_features)
    query = states @ head.query.weight.T + head.query.bias
    for i in range(ITEMS):
        row = (head.project.weight @ (vectors[i] + head.free_scale * head.free[i]) + head.project.bias) / 8**0.5
        table, bias = head.table(vectors)
        torch.testing.assert_close(query @ row + head.bias[i], head.queries(states) @ table[i] + bias[i])


def test_without_a_side_network_a_slots_own_states_are_read_each_layer_normed(new_scorer, data):
    ilm = new_scorer(side=None)
    batch = tasks_of(ilm, data).histories(ilm.prompts, [[3, 1, 4]], [[]], np.random.default_rng(0)).batch
    hidden = torch.randn(2, 96)  # of the embeddings and two layers
    normed = torch.cat([F.layer_norm(state, (32,)) for state in hidden.split(32, 1)], 1)
    torch.testing.assert_close(ilm.head.read(hidden), normed)
    beside = new_scorer().head
    own = beside.table(ilm.cf[:ITEMS])[0][[3, 1]]
    torch.testing.assert_close(beside.read(hidden, ilm.cf, batch), beside.side(normed, own, batch))


def test_the_loss_is_cross_entropy_and_sampling_all_items_gives_the_same(new_scorer):
    head, vectors = new_scorer().head, torch.randn(ITEMS, CF)
    states, targets = torch.randn(40, 8), torch.randint(ITEMS, (40,))
    table, bias = head.table(vectors)
    whole = head.loss(states, vectors, targets)
    torch.testing.assert_close(whole, F.cross_entropy(head.queries(states) @ table.T + bias, targets))
    torch.testing.assert_close(head.loss(states, vectors, targets, ITEMS), whole)


def test_the_loss_over_rivals_is_near_that_over_all_items(new_scorer):
    """Its normaliser is unbiased; its logarithm is a little low."""
    head, vectors = new_scorer(side=None).head, torch.randn(ITEMS, CF)
    states, targets = torch.randn(4, 96), torch.tensor([1, 5, 5, 9])
    torch.manual_seed(0)
    spread = {}
    for drawn in (2, 10):
        found = []
        for _ in range(400):  # places change their batch: the rivals that are targets differ, too
            others = torch.randint(ITEMS, (4,))
            both = head.loss(torch.cat([states, states]), vectors, torch.cat([targets, others]), drawn)
            exact = head.loss(torch.cat([states, states]), vectors, torch.cat([targets, others]))
            found.append((both - exact).item())
        assert np.mean(found) == pytest.approx(0, abs=0.12)
        spread[drawn] = np.std(found)
    assert spread[10] < spread[2]


def test_an_item_that_training_does_not_meet_is_no_negative_and_has_its_projection_alone(new_scorer):
    ilm = new_scorer()
    head, vectors = ilm.head, torch.randn(ITEMS, CF)
    head.share[4] = 0
    table, bias = head.table(vectors)
    torch.testing.assert_close(table[4], head.rows(vectors[4]))
    assert bias[4] == 0
    states, targets = torch.randn(20, 8), torch.randint(4, (20,))
    for negatives in (None, ITEMS - 1):
        head.zero_grad()
        head.loss(states, vectors, targets, negatives).backward()
        assert not head.free.grad[4].any() and not head.bias.grad[4]
        assert head.free.grad[3].any()
    rest = [i for i in range(ITEMS) if i != 4]
    expected = F.cross_entropy((head.queries(states) @ table.T + bias)[:, rest], targets)
    torch.testing.assert_close(head.loss(states, vectors, targets), expected)


def test_some_items_of_a_step_are_shown_as_new_ones(new_scorer):
    """Without what interactions tell of them, free part and bias included; in training alone, and users as they are."""
    ilm = new_scorer()
    head = ScoreHead(32, CF, ITEMS, dim=8, known=4, cold_dropout=0.5)
    torch.nn.init.normal_(head.free)
    torch.nn.init.normal_(head.bias)
    head.share[0] = 0
    whole, new = ilm.cf[:ITEMS] + head.free_scale * head.free, ilm.cf[:ITEMS] * torch.tensor([0, 0, 0, 0, 1, 1])
    whole[0] = new[0]
    torch.testing.assert_close(head.eval().learned(ilm.cf), torch.cat([whole, ilm.cf[ITEMS:]]))
    torch.manual_seed(0)
    head.train().hide()
    vectors = head.learned(ilm.cf)
    torch.testing.assert_close(vectors[ITEMS:], ilm.cf[ITEMS:])
    is_new, is_whole = ((vectors[:ITEMS] == one).all(1) for one in (new, whole))
    assert (is_new | is_whole).all() and 2 < is_new.sum() < ITEMS - 2
    table, bias = head.table(ilm.cf[:ITEMS])
    shown_new = (table - head.rows(new)).abs().amax(1) < 1e-6
    assert (shown_new == is_new).all() and ((bias == 0) == is_new).all()  # the same ones as in the tokens
    head.hide()
    assert (head.learned(ilm.cf) != vectors).any()  # and others in the next step
    with pytest.raises(ValueError, match="needs known"):
        ScoreHead(32, CF, ITEMS, cold_dropout=0.5)


def test_tokens_and_table_are_made_of_the_same_vectors(new_scorer):
    """What is learned of an item stands in both; users, and items that training does not meet, have their own alone."""
    ilm = new_scorer()
    ilm.head.share[4] = 0
    entities = torch.tensor([1, 4, ITEMS, ITEMS + 1])  # two items, two users
    wanted = ilm.cf[entities].clone()
    wanted[0] += ilm.head.free_scale * ilm.head.free[1]
    torch.testing.assert_close(ilm.head.learned(ilm.cf, entities), wanted)
    with torch.no_grad():
        torch.testing.assert_close(ilm.tokens(entities), ilm.encoder(wanted))
        torch.testing.assert_close(ilm.table()[0][[1, 4]], ilm.head.rows(wanted[:2]))
        ilm.head.free[1] += 1
        assert not torch.equal(ilm.tokens(entities)[0], ilm.encoder(wanted)[0])  # what was kept of it is gone
    assert torch.equal(new_scorer(free=False).head.learned(ilm.cf, entities), ilm.cf[entities])


@pytest.mark.parametrize("block", [1, 4, 7, 100])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_top_items_are_those_of_a_full_sort(block, k):
    torch.manual_seed(0)
    queries, table, bias = torch.randn(6, 3), torch.randn(30, 3), torch.randn(30)
    banned = [[], [1], [2, 3, 29], list(range(30)), [0, 0, 7], list(range(5, 30))]
    items, log_probability = top_items(queries, table, bias, k, banned, block=block)
    scores = queries @ table.T + bias
    expected = scores.log_softmax(1)
    for row, ban in enumerate(banned):
        left = [i for i in scores[row].argsort(descending=True).tolist() if i not in ban][:k]
        assert items[row].tolist() == left + [-1] * (min(k, 30) - len(left))
        torch.testing.assert_close(log_probability[row, : len(left)], expected[row, left])
    free = top_items(queries, table, bias, k, block=block)[0]
    assert free.tolist() == scores.argsort(1, descending=True)[:, :k].tolist()


# ---------------------------------------------------------------- reading a history


@pytest.mark.parametrize("prompt", [{}, {"words": "title"}, {"words": "template"}, {"user": True}], ids=str)
@pytest.mark.parametrize("positions", ["slot", "own", "shared"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_pass_reads_every_place_as_if_the_history_ended_there(new_scorer, data, kind, positions, prompt):
    """And so it has seen nothing of what comes after: neither tokens nor words nor the user's vector."""
    ilm = new_scorer(kind, positions=positions, **prompt)
    windows, before = [[3, 1, 4, 5], [9, 2, 6], [5, 3]], [[7, 8], [], [0]]
    scoring = tasks_of(ilm, data)
    made = scoring.histories(ilm.prompts, windows, before, np.random.default_rng(0))
    states = ilm.slot_states(made.batch, made.guests)
    number = 0
    for row, window in enumerate(windows):
        own = int((made.batch.slot_prompt == row).sum())
        for slot in range(own):
            shown = slot + len(window) - own  # a user's slot comes before all items
            if prompt.get("words") == "template" and not shown:
                number += 1  # a user alone is asked in other words
                continue
            ends_in_words = slot < own - 1 and prompt.get("words")
            short = scoring.histories(ilm.prompts, [[*window[:shown], 0]], [before[row]], np.random.default_rng(0))
            batch = short.batch
            if ends_in_words:  # which only the prompt's last slot is read with
                batch.slot_read[-1] = batch.slot_start[-1] + ilm.prompts.num_query_tokens - 1
            alone = ilm.slot_states(batch, short.guests)[-1]
            torch.testing.assert_close(states[number], alone, atol=2e-4, rtol=1e-3)
            assert int(made.targets[number]) == window[shown]
            number += 1
    assert number == len(states)


@pytest.mark.parametrize("prompt", [{}, {"words": "title"}, {"words": "template"}, {"user": True}], ids=str)
def test_no_state_has_seen_its_target_or_what_follows(new_scorer, data, prompt):
    """Change an item of a window: states whose target it is, and all before, stay the same; later ones do not."""
    ilm = new_scorer(**prompt)
    scoring = tasks_of(ilm, data)
    window, before = [3, 1, 4, 5, 9], [[7, 8]]
    make = lambda items: scoring.histories(ilm.prompts, [items], before, np.random.default_rng(0))
    made = make(window)
    states = ilm.slot_states(made.batch, made.guests)
    for place in range(len(window) - 1):
        other = make([*window[:place], 12, *window[place + 1 :]])
        changed = ilm.slot_states(other.batch, other.guests)
        same = (states - changed).abs().amax(1) < 1e-5
        targets = made.targets.tolist()
        asked = targets.index(window[place]) if window[place] in targets else -1  # nobody is asked for the first
        assert same[: asked + 1].all() and not same[asked + 1 :].any()


def test_a_leak_would_be_seen(new_scorer, data):
    """The same check finds a user's vector that is made of the whole sequence, target and all."""
    ilm = new_scorer(user=True)
    scoring = tasks_of(ilm, data)
    make = lambda items: scoring.histories(ilm.prompts, [items], [[7, *items]], np.random.default_rng(0))
    made, other = make([3, 1, 4]), make([3, 1, 12])
    assert (ilm.slot_states(made.batch, made.guests) - ilm.slot_states(other.batch, other.guests)).abs().max() > 1e-3


@pytest.mark.parametrize("prompt", [{}, {"user": True}, {"words": "template"}], ids=str)
def test_training_holds_neither_dev_nor_test_items(new_scorer, data, monkeypatch, prompt):
    ilm = new_scorer(**prompt)
    scoring = tasks_of(ilm, data)
    parts, batch = [], scoring.training_batches(ilm.prompts, 6, 0)
    monkeypatch.setattr(
        ScoringTasks, "histories", lambda self, _, windows, before, *rest: parts.extend(zip(windows, before))
    )
    for number in range(60):
        batch(number)
    sequences = [data.train_sequence(u).tolist() for u in range(USERS)]
    trained = [s for s in sequences if len(s) > 1]
    begun = {tuple(map(int, [*before, *window])) for window, before in parts}
    assert all(any(tuple(s[: len(part)]) == part for s in trained) for part in begun)
    assert begun >= {tuple(s) for s in trained}  # and all of it is used
    assert {len(window) for window, _ in parts} <= {2, 3, 4, 5}


def test_targets_are_the_items_that_come_next():
    prompts = [[User(0), " had ", Item(3), Item(1)], [Item(5), Item(6), " for ", User(2), " ?"]]
    windows = [[3, 1, 4], [5, 6, 7]]
    assert next_items(prompts, windows, "every") == [3, 1, 4, 6, 7, 7]
    assert next_items(prompts, windows, "last") == [NO_LOSS, NO_LOSS, 4, NO_LOSS, NO_LOSS, 7]


def test_the_last_layer_stands_last(new_scorer, data):
    every, last = new_scorer(side=None), new_scorer(side=None, last=True)
    last.head.free = every.head.free
    made = tasks_of(every, data).histories(every.prompts, [[3, 1, 4], [5, 2]], [[], []], np.random.default_rng(0))
    states = every.slot_states(made.batch)
    torch.testing.assert_close(states[:, -32:], last.slot_states(made.batch))
    read = every.encoder(every.head.learned(every.cf, torch.tensor([3, 1, 5])))  # (3, N, 32), by the first layer
    torch.testing.assert_close(states[:, :32], F.layer_norm(read[:, -1], (32,)))


@pytest.mark.parametrize("context", ["last", "mean"])
def test_without_the_llm_nothing_of_it_counts(new_scorer, data, context):
    ilm, other = (new_scorer(llm, context=context, side=None) for llm in ("llama", "gpt2"))
    other.encoder.load_state_dict(ilm.encoder.state_dict())
    other.head.load_state_dict(ilm.head.state_dict())
    other.register_buffer("cf", ilm.cf, persistent=False)
    made = tasks_of(ilm, data).histories(ilm.prompts, [[3, 1, 4], [5, 2]], [[], []], np.random.default_rng(0))
    states = ilm.slot_states(made.batch)
    torch.testing.assert_close(other.slot_states(made.batch), states)
    one = ilm.encoder(ilm.head.learned(ilm.cf, torch.tensor([3, 1, 5]))).mean(1)
    second = one[1] if context == "last" else (one[0] + one[1]) / 2
    torch.testing.assert_close(states, F.layer_norm(torch.stack([one[0], second, one[2]]), (32,)))


# ---------------------------------------------------------------- training


def trained(ilm, data, folder, **changes):
    params = Score(**dict(steps=60, batch_size=9, lr=0.02, precision="float32", eval_every=30) | changes)
    scoring = tasks_of(ilm, data)
    batches = scoring.training_batches(ilm.prompts, params.batch_size, 0, params.places)
    users = np.arange(USERS)
    train_score(folder, ilm, batches, params, seed=0, evaluate=lambda model, step: dev_metrics(model, scoring, users))
    return scoring


@pytest.mark.parametrize("encoder", ["mlp", "qformer"])
@pytest.mark.parametrize("prompt", [{}, {"words": "template"}], ids=str)
def test_training_lowers_the_loss_and_leaves_the_llm_as_it_was(new_scorer, data, tmp_path, encoder, prompt):
    ilm = new_scorer(encoder=encoder, **prompt)
    text = ilm.encode([["What follows Toy items item_301 ?"]])
    with torch.no_grad():
        before, logits = weights_fingerprint(ilm.llm), ilm(text).logits
    batch = tasks_of(ilm, data).training_batches(ilm.prompts, 9, 1)(0)
    loss = lambda: float(score_loss(ilm.eval(), batch, Score()).detach())
    first = loss()
    trained(ilm, data, tmp_path)
    assert loss() < first - 0.3
    assert weights_fingerprint(ilm.llm) == before
    with torch.no_grad():
        assert torch.equal(ilm(text).logits, logits)


def test_equal_seeds_give_equal_weights(new_scorer, data, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        trained(new_scorer(), data, tmp_path / name, steps=10)
    a, b = ((tmp_path / name / "score.safetensors").read_bytes() for name in "ab")
    assert a == b


def test_large_catalogues_are_sampled(new_scorer, data, monkeypatch):
    ilm = new_scorer()
    batch = tasks_of(ilm, data).training_batches(ilm.prompts, 9, 0)(0)
    asked = []
    monkeypatch.setattr(ScoreHead, "loss", lambda self, h, v, t, n=None: asked.append(n))
    score_loss(ilm, batch, Score(sampled_above=10, negatives=7))
    score_loss(ilm, batch, Score(sampled_above=ITEMS))
    assert asked == [7, None]


# ---------------------------------------------------------------- recommending


def test_recommend_scores_the_whole_catalogue(new_scorer):
    ilm = new_scorer()
    found = ilm.recommend(history=[Item(3), "Film 8"], k=20)
    assert {r.item.row for r in found} == set(range(ITEMS)) - {3, 8}
    batch = ilm.encode([[Item(3), Item(8)]])
    with torch.no_grad():
        table, bias = ilm.head.table(ilm.cf[:ITEMS])
        expected = (ilm.head.queries(ilm.slot_states(batch)[-1:]) @ table.T + bias).log_softmax(1)[0]
    assert [r.log_probability for r in found] == pytest.approx([float(expected[r.item.row]) for r in found], abs=1e-5)
    assert [r.log_probability for r in found] == sorted((r.log_probability for r in found), reverse=True)
    assert len(ilm.recommend(history=[Item(3)], k=3, exclude_history=False)) == 3
    assert ilm.recommend(User(1), [Item(3)], readout="beam") != ilm.recommend(User(1), [Item(3)])


@pytest.mark.parametrize("prompt", [{}, {"user": True}, {"words": "template"}, {"words": "title"}], ids=str)
def test_many_at_once_are_recommended_as_each_alone(new_scorer, prompt):
    ilm = new_scorer(**prompt)
    histories = [[Item(3)], [Item(i) for i in range(9)], [Item(7), Item(2)]]
    many = ilm.recommend_many([User(1), None, "u3"], histories, 5)
    for user, history, found in zip([User(1), None, User(3)], histories, many):
        alone = ilm.recommend(user, history, 5)
        assert [r.item for r in found] == [r.item for r in alone]
        assert [r.log_probability for r in found] == pytest.approx([r.log_probability for r in alone], abs=1e-4)
    assert ilm.recommend_many(None, [], 5) == []


@pytest.mark.parametrize("task", ["sequential", "straightforward"])
def test_rank_agrees_with_recommend(new_scorer, data, task):
    ilm = new_scorer(user=True)
    users = np.array([4, 0, 7])
    ranked = rank(ilm, tasks_of(ilm, data), task=task, split="test", users=users, history_rules=("kept", "excluded"))
    for row, user in enumerate(users):
        history = [Item(int(i)) for i in data.history(user, "test")] if task == "sequential" else []
        found = ilm.recommend(User(int(user)), history, 10, exclude_history=False)
        assert ranked["kept"][row].tolist() == [r.item.row for r in found]
        assert not set(ranked["excluded"][row]) & set(data.history(user, "test").tolist())


@pytest.mark.parametrize("encoder", ["mlp", "qformer"])
def test_a_user_alone_is_asked_by_the_vector_of_the_table(new_scorer, encoder):
    ilm = new_scorer(encoder=encoder, user=True)
    found = ilm.recommend(User(1), k=ITEMS)
    with torch.no_grad():
        table, bias = ilm.head.table(ilm.cf[:ITEMS])
        states = ilm.slot_states(ilm.encode([[User(1)]]))
        expected = (ilm.head.queries(states) @ table.T + bias).log_softmax(1)[0]
    assert [r.log_probability for r in found] == pytest.approx([float(expected[r.item.row]) for r in found], abs=1e-5)


def test_the_table_follows_every_change(new_scorer):
    ilm = new_scorer()
    first = ilm.table()
    assert ilm.table() is first
    with torch.no_grad():
        ilm.head.bias[0] += 1
    assert ilm.table()[1][0] == first[1][0] + 1


@pytest.mark.parametrize("call, words", [
    (lambda m: m.recommend(User(1)), "history"),
    (lambda m: m.recommend(history=[Item(1)], readout="beams"), "'beam' or 'score'"),
    (lambda m: m.recommend_many([User(1)], []), "one history for each user"),
], ids=["no history", "unknown readout", "unequal"])  # fmt: skip
def test_what_cannot_be_asked_is_refused(new_scorer, call, words):
    with pytest.raises(WrongValue, match=words):
        call(new_scorer())


def test_a_model_without_a_head_has_no_scores(new_ilm):
    with pytest.raises(WrongValue, match="no head"):
        new_ilm("mlp").recommend(history=[Item(1)], readout="score")


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("users", [True, False])
@pytest.mark.parametrize("prompt", [{}, {"user": True}, {"words": "title"}], ids=str)
def test_a_saved_model_recommends_the_same(new_scorer, tmp_path, prompt, users):
    ilm = new_scorer(**prompt)
    ilm.head.share[2] = 0
    loaded = ILM.from_pretrained(ilm.save_pretrained(tmp_path / "model", users=users))
    ask = lambda model: model.recommend(history=[Item(i) for i in (3, 8, 1, 5, 7, 9)], k=8)
    assert loaded.head.config() == ilm.head.config()
    assert "score: its hidden state" in (tmp_path / "model/README.md").read_text()
    assert [r.item for r in ask(loaded)] == [r.item for r in ask(ilm)]


def test_a_head_of_other_items_is_refused(new_scorer, tmp_path):
    ilm = new_scorer()
    ilm.head = ScoreHead(32, CF, ITEMS - 1, dim=8)
    with pytest.raises(ModelFolderError, match="other items"):
        ILM.from_pretrained(ilm.save_pretrained(tmp_path / "model"))


def test_a_head_for_another_llm_is_refused(new_scorer, tmp_path):
    ilm = new_scorer()
    for number, sizes in enumerate(({"llm_width": 32, "states": 7}, {"llm_width": 16})):
        ilm.head = ScoreHead(**sizes, vector_dim=CF, num_items=ITEMS, dim=8)
        with pytest.raises(ModelFolderError, match="does not fit an LLM of width 32 and 2 layers"):
            ILM.from_pretrained(ilm.save_pretrained(tmp_path / f"model{number}"))
