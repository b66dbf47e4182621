"""The ELM-24 tasks as prompts, likelihoods and texts, with a tiny model."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from ilm_lib import load_params
from ilm_lib.model.prompts import Item, Special
from ilm_lib.study import elm as study_elm
from ilm_lib.study import elm_results, inputs, kept
from ilm_lib.study.probes import rank_agreement
from ilm_lib.tasks import battery, elm

FILMS = [
    {"title": f"Film {i} (199{i % 10})", "genres": ["War", "Drama"][i % 2 :], "overview": f"Plot of number {i}."}
    for i in range(15)
]
ROWS = pd.DataFrame(
    [
        ("summary", 0, -1, "Summarize the movie {film}.", "A war film.", "template", "train"),
        ("similarities", 1, 2, "What do {film} and {other} share?", "Both are drama films.", "template", "train"),
        ("pitch", 3, -1, "Pitch {film} .", "See it.", "template", "test"),
        ("diff than nn", 4, 5, "How does {other} differ from {film}?", "In its plot, by much.", "template", "test"),
    ],
    columns=["task", "item", "other", "prompt", "target", "teacher", "split"],
)


@pytest.fixture(scope="module")
def elm_tasks():
    return elm.ElmTasks(ROWS, FILMS)


def row(elm_tasks, i):
    return list(elm_tasks.rows.itertuples())[i]


def test_films_are_slots_or_words(elm_tasks):
    assert elm_tasks.prompt(row(elm_tasks, 0)) == ["Summarize the movie ", Item(0), "."]
    assert elm_tasks.prompt(row(elm_tasks, 3)) == ["How does ", Item(5), " differ from ", Item(4), "?"]
    assert "".join(elm_tasks.prompt(row(elm_tasks, 3), "title")) == "How does Film 5 (1995) differ from Film 4 (1994)?"
    assert "".join(elm_tasks.prompt(row(elm_tasks, 2), "card")) == "Pitch Film 3 (1993) (Drama; Plot of number 3.) ."
    assert "".join(elm_tasks.prompt(row(elm_tasks, 2), "facts")) == "Pitch a film (1993) (Drama) ."
    assert elm.in_words({"title": "Untitled"}, "facts") == "a film"


def test_a_card_drops_facts_at_random_but_never_the_title():
    rng = np.random.default_rng(0)
    cards = {elm.film_card(FILMS[0], rng) for _ in range(50)}
    assert len(cards) == 4 and all(c.startswith("Film 0 (1990)") for c in cards)
    assert elm.film_card(FILMS[0]) == "Film 0 (1990) (War, Drama; Plot of number 0.)"


def test_phase_1_pairs_are_training_films_with_their_titles_and_no_interactions(elm_tasks):
    pairs = elm_tasks.pairs()
    train = elm_tasks.part("train")
    assert pairs.entity.tolist() == train[["item", "other"]].values.tolist() and pairs.entity[0].tolist() == [0, -1]
    assert pairs.texts[0] == "Summarize the movie Film 0 (1990). A war film."
    assert len(pairs.ii) == len(pairs.ui) == 0


def test_likelihood_and_texts_come_in_the_order_of_the_rows(elm_tasks, new_ilm):
    ilm, test = new_ilm("qformer"), elm_tasks.part("test")
    scored = elm.evaluate(ilm, elm_tasks, test, max_new_tokens=4, batch_size=1)
    together = elm.evaluate(ilm, elm_tasks, test, max_new_tokens=4, batch_size=2)
    assert scored["generated"].tolist() == together["generated"].tolist()
    np.testing.assert_allclose(scored["nll"], together["nll"], rtol=1e-4)
    for i, r in enumerate(test.itertuples()):
        nll, tokens = ilm.token_nll(ilm.encode([elm_tasks.prompt(r)], answers=[" " + r.target]))
        assert scored["nll"][i] == pytest.approx(float(nll), rel=1e-4) and scored["tokens"][i] == int(tokens)


def test_a_film_in_words_is_what_the_bare_model_reads(elm_tasks, new_ilm):
    test = elm_tasks.part("test")
    a, b = (
        elm.evaluate(new_ilm(kind), elm_tasks, test, max_new_tokens=3, in_text="card") for kind in ("none", "qformer")
    )
    assert a["nll"].tolist() == b["nll"].tolist() and a["generated"].tolist() == b["generated"].tolist()
    assert not np.allclose(a["nll"], elm.evaluate(new_ilm("qformer"), elm_tasks, test, max_new_tokens=3)["nll"])


def test_a_walk_begins_and_ends_at_the_films(new_ilm):
    ilm = new_ilm("qformer")
    said = elm.walk(ilm, 2, 7, ("Describe ", "."), points=3, max_new_tokens=5)
    assert [said[0], said[2]] == ilm.generate(
        [["Describe ", Item(2), "."], ["Describe ", Item(7), "."]], max_new_tokens=5
    )
    assert len(said) == 3 and ilm.cf.shape[0] > 3  # the model itself stays as it was


def test_no_answer_repeats_itself_but_it_may_repeat_the_prompt(elm_tasks, new_ilm):
    (rule,), scores = elm.no_repeat(2), torch.zeros(1, 10)
    assert rule(torch.tensor([[7, 8, 7]]), scores).isfinite().all()  # the prompt: 8 may follow 7 again
    banned = rule(torch.tensor([[7, 8, 7, 8, 9, 8]]), scores).isinf()[0]
    assert banned.nonzero().flatten().tolist() == [9]
    assert len(elm.no_repeat(0)) == 0
    ilm, test = new_ilm("qformer"), elm_tasks.part("test")
    texts = {
        n: elm.evaluate(ilm, elm_tasks, test, max_new_tokens=16, no_repeat_ngram=n)["generated"].tolist()
        for n in (0, 1)
    }
    assert texts[0] != texts[1]


def test_rank_agreement():
    rng = np.random.default_rng(0)
    cf = rng.normal(size=(60, 5))
    assert rank_agreement(3 * cf + 1, cf) == pytest.approx(1)
    assert abs(rank_agreement(rng.normal(size=(60, 5)), cf)) < 0.1
    near = cf + rng.normal(size=(60, 5))
    assert 0.2 < rank_agreement(near, cf) < 0.9


def test_mlp_n_is_the_mlp_with_the_tokens_of_the_qformer(tmp_path, monkeypatch):
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path))
    params = load_params("toy").with_(
        **{
            "data.num_items": 80,
            "data.num_users": 90,
            "embeddings.dim": 4,
            "qformer.num_query_tokens": 3,
            "backbone.layers": 1,
            "backbone.width": 16,
            "backbone.heads": 2,
            "elm24.backbone_steps": 1,
            "elm24.phase2_steps": 1,
            "elm24.rows_per_task": 1,
            "elm24.max_new_tokens": 1,
            "elm24.mlp_n": True,
            "phase2.batch_size": 2,
        }
    )
    assert study_elm.anchors(params) == ["MLP-N", "Film-blind", "Facts-in-text", "Title-in-text"]
    assert study_elm.anchors(load_params("toy")) == ["Film-blind", "Facts-in-text", "Title-in-text"]
    inputs.data(params, build=True)
    tokens = {}
    for method in ("MLP", "MLP-N"):
        trained = study_elm.evaluation(params, 0, method, build=True)
        tokens[method] = json.loads(trained.path("encoder.json").read_text())["config"]["num_tokens"]
        assert len(elm_results.scored(trained)) == 24
    assert tokens == {"MLP": 1, "MLP-N": 3}
    tuned = params.with_(**{"elm24.tuned": True})
    assert study_elm.anchors(tuned) == [
        "MLP-N", "Film-blind", "Nothing-in-text", "Facts-in-text", "Title-in-text", "Facts-in-text, tuned",
        "Title-in-text, tuned",
    ]  # fmt: skip
    loss = lambda method: elm_results.scored(study_elm.evaluation(tuned, 0, method, build=True))["nll"].sum()
    assert len({loss(m) for m in ("Nothing-in-text", "Facts-in-text", "Facts-in-text, tuned")}) == 3
    left = kept.kept_table(params, 0, "MLP", build=True).set_index("measure")
    assert [*left.index] == ["perplexity", "facts", "instructions", "same logits"]
    assert left.loc["same logits", [*kept.WAYS.values()]].tolist() == [1, 1, 0, 0]
    assert left.loc["perplexity", "before"] == left.loc["perplexity", "after, frozen"]
    before, after = (study_elm.load_ilm(params, 0, "MLP", trained=trained).item_tokens() for trained in (False, True))
    assert before.shape == after.shape == (80, 1, 16) and 0 < (before - after).abs().max() < 1  # one step of training


def test_soft_tokens_stand_in_front_of_words(new_ilm, elm_tasks):
    """They are the same for all films, so what is known of a film stands in the words."""
    one, other = row(elm_tasks, 0), row(elm_tasks, 2)
    assert elm_tasks.prompt(one, "facts", soft=True) == [Item(0), *elm_tasks.prompt(one, "facts")]
    assert "".join(elm_tasks.prompt(one, "nothing")) == "Summarize the movie a film."
    ilm = new_ilm("qformer")
    batch = elm_tasks.training_batches(ilm.prompts, 4, seed=0, in_text="facts")(0)
    assert len(batch.slot_row) == 4
    ilm.cf = ilm.cf.mean(0, keepdim=True).expand_as(ilm.cf).contiguous()
    tokens = ilm.tokens(torch.tensor(sorted({one.item, other.item})))
    torch.testing.assert_close(tokens[0], tokens[1])


def test_an_llm_with_a_chat_template_is_asked_in_it(new_ilm, elm_tasks, monkeypatch):
    """The user asks, the assistant answers, in training and in evaluation; phase 1 reads no roles."""
    ilm, test = new_ilm("qformer"), elm_tasks.part("test")
    plain = elm_tasks.asked_of(ilm.tokenizer)
    assert plain.chat is None and plain.prompt(next(test.itertuples()))[-1] != Special(ilm.tokenizer.eos_token_id)
    end, template = (
        ilm.tokenizer.eos_token,
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}"
        ),
    )
    monkeypatch.setattr(ilm.tokenizer, "chat_template", template)
    tasks = elm_tasks.asked_of(ilm.tokenizer, "Be brief.")
    row = next(test.itertuples())
    prompt = tasks.prompt(row)
    assert prompt[:2] == ["system: ", "Be brief."] and prompt[-2:] == [Special(tasks.end), "assistant: "]
    assert [s for s in prompt if isinstance(s, Item)] == [s for s in elm_tasks.prompt(row) if isinstance(s, Item)]
    assert tasks.pairs().texts == elm_tasks.pairs().texts
    batch = tasks.training_batches(ilm.prompts, 4, seed=0)(0)
    said = ilm.tokenizer.decode(batch.labels[batch.labels >= 0])
    assert "assistant" not in said and said.count(end) == 4
    scored = elm.evaluate(ilm, tasks, test, max_new_tokens=3)
    assert not np.allclose(scored["nll"], elm.evaluate(ilm, elm_tasks, test, max_new_tokens=3)["nll"])
    first = tasks.prompt(row), tasks.answer(row.target)
    nll, tokens = ilm.token_nll(ilm.encode([first[0]], answers=[first[1]], end=tasks.end))
    assert scored["nll"].iloc[0] == pytest.approx(float(nll), rel=1e-4) and scored["tokens"].iloc[0] == int(tokens)


def test_who_tells_the_film_is_picked():
    """Methods by rows of the task; films without a plot are in no question."""
    films = [{"overview": f"plot {i}"} for i in range(8)] + [{}]
    table = lambda text: pd.DataFrame({"task": "summary", "item": range(9), "generated": [text(i) for i in range(9)]})
    embed = lambda texts: np.array([np.eye(9)[int(t.split()[1])] for t in texts])
    found = elm_results.picked_table(
        {"ILM": table(lambda i: f"plot {i}"), "MLP": table(lambda i: "plot 0")}, films, embed
    )
    assert found["films"].tolist() == [8, 8] and found["picked"].tolist() == [1, 1 / 8]


def test_the_battery_tells_an_llm_that_knows_from_one_that_does_not(new_ilm, monkeypatch):
    """An LLM that gives every right ending a head start has all facts; one of random weights has chance."""
    ilm = new_ilm("none")
    texts = ["Toy items item_301 .", "What follows ?"]
    first, again = (battery.battery(ilm.llm, ilm.tokenizer, texts) for _ in range(2))
    assert first.attrs == again.attrs and first.equals(again)
    assert first["measure"].tolist() == ["perplexity", "facts", "instructions"] and first["n"][1] == 50
    assert first["value"][1] < 0.6
    plain = battery._likelihood

    def knowing(llm, encoder, pairs, digest=None):
        nll, tokens = plain(llm, encoder, pairs, digest)
        return (nll - 1e3 * torch.tensor([pair in right for pair in pairs]) * tokens), tokens

    right = {(begin, ending) for begin, ending, _ in battery.FACTS}
    monkeypatch.setattr(battery, "_likelihood", knowing)
    monkeypatch.setattr(battery, "_answers", lambda llm, encoder: ["Paris 4 red whale sun river bonjour gracias"] * 16)
    told = battery.battery(ilm.llm, ilm.tokenizer, texts)
    assert told["value"][1] == 1 and told["value"][2] == pytest.approx(8 / 16)


def test_likelihoods_are_those_of_the_texts_alone(new_ilm):
    """Padding and neighbours change nothing, and a beginning counts as given."""
    ilm = new_ilm("none")
    encoder = ilm.prompts
    pairs = [("Toy items", " item_301 item_4"), ("What", " follows ?"), ("", "Pick one item for Toy")]
    nll, tokens = battery._likelihood(ilm.llm, encoder, pairs)
    for (begin, end), value, count in zip(pairs, nll, tokens):
        given = [*encoder.bos, *(encoder.text_ids(begin) if begin else [])]
        ids = torch.tensor([[*given, *encoder.text_ids(end)]])
        with torch.no_grad():
            logp = ilm.llm(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        assert count == len(encoder.text_ids(end))
        torch.testing.assert_close(value, -logp[len(given) - 1 :].sum(), atol=1e-4, rtol=1e-4)
