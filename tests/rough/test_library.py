"""The library's door: what `recommend`, `generate` and the look-ups are given by mistake, one line a case."""

import numpy as np
import pytest
import torch
from plain import refused

from ilm_lib.baselines.cf import fit_cf, fold_in
from ilm_lib.model.catalogue import Catalogue
from ilm_lib.model.fold_in import FoldIn
from ilm_lib.model.ilm import ILM
from ilm_lib.model.prompts import Item, User

FILM = "Film 3"
LONG = "x" * 500


@pytest.fixture(scope="module")
def ilm(new_ilm):
    """15 items, "Film 0" (id "i0") and on; 9 users, "u0" and on."""
    return new_ilm("mlp")


@pytest.fixture(scope="module")
def bare(new_ilm):
    return new_ilm("none")


@pytest.fixture(scope="module")
def able(new_ilm):
    """One that knows how a user's vector comes from a history."""
    ilm = new_ilm("mlp")
    ilm.fold_in = FoldIn(0.1, 1.0, 0.1, 0.01, 1.0, 1.0)
    return ilm


SLOTS = {  # what is put into Item and User: the error, and what its message says
    "negative": (-1, IndexError, "from 0"),
    "text": ("17", TypeError, "title"),
    "fraction": (1.0, TypeError, "whole"),
    "a half": (0.5, TypeError, "whole"),
    "nan": (float("nan"), TypeError, "whole"),
    "truth": (True, TypeError, "True"),
    "numpy truth": (np.bool_(False), TypeError, "whole"),
    "numpy fraction": (np.float32(3), TypeError, "whole"),
    "torch truth": (torch.tensor(True), TypeError, "whole"),
    "nothing": (None, TypeError, "None"),
    "list": ([3], TypeError, "[3]"),
    "an item": (Item(3), TypeError, "Item(row=3)"),
    "array": (np.arange(3), TypeError, "whole"),
    "long text": (LONG, TypeError, "xxx"),
}


@pytest.mark.parametrize("kind", [Item, User])
@pytest.mark.parametrize("case", SLOTS)
def test_a_row_is_a_whole_number(kind, case):
    row, error, says = SLOTS[case]
    refused(lambda: kind(row), kind.__name__, says)
    with pytest.raises(error):
        kind(row)


@pytest.mark.parametrize("row", [np.int64(3), np.int32(3), np.uint8(3), torch.tensor(3)])
@pytest.mark.parametrize("kind", [Item, User])
def test_numpys_whole_numbers_are_rows(kind, row):
    assert kind(row) == kind(3) and type(kind(row).row) is int and hash(kind(row)) == hash(kind(3))


RECOMMEND = {  # arguments, the built-in error, and what the message names
    "user as a row": (dict(user=5), TypeError, ["user", "User(5)", "'5'"]),
    "user as a numpy row": (dict(user=np.int64(5)), TypeError, ["user", "User(5)"]),
    "user True": (dict(user=True), TypeError, ["user", "True"]),
    "user a fraction": (dict(user=5.0), TypeError, ["user", "5.0"]),
    "user an item": (dict(user=Item(5)), TypeError, ["user", "Item(row=5)", "a User"]),
    "user a list": (dict(user=[User(5)]), TypeError, ["user", "a User"]),
    "user bytes": (dict(user=b"u5"), TypeError, ["user", "b'u5'"]),
    "user beyond the last": (dict(user=User(9)), IndexError, ["User(row=9)", "9 users", "0 to 8"]),
    "user far beyond": (dict(user=User(10**6)), IndexError, ["1000000", "9 users"]),
    "user beyond 64 bits": (dict(user=User(10**30)), IndexError, ["9 users"]),
    "user of no known id": (dict(user="u99"), LookupError, ["u99", "9 users"]),
    "user of an id that is close": (dict(user="uu5"), LookupError, ["uu5", "Close", "'u5'"]),
    "user of an empty id": (dict(user=""), LookupError, ["no user", "''"]),
    "user of a long id": (dict(user=LONG), LookupError, ["no user"]),
    "a title in the user's place": (dict(user=FILM), LookupError, ["no user"]),
    "nobody and nothing": (dict(), ValueError, ["user", "history"]),
    "user None and no history": (dict(user=None, history=[]), ValueError, ["user", "history"]),
    "user None, and no fold-in": (dict(user=None, history=[FILM]), ValueError, ["user", "fold_in"]),
    "history a title": (dict(user="u1", history=FILM), TypeError, ["history", "['Film 3']"]),
    "history an empty text": (dict(user="u1", history=""), TypeError, ["history", "list"]),
    "history an item": (dict(user="u1", history=Item(3)), TypeError, ["history", "[Item(row=3)]"]),
    "history a row": (dict(user="u1", history=3), TypeError, ["history", "list"]),
    "history None": (dict(user="u1", history=None), TypeError, ["history", "list"]),
    "history a set": (dict(user="u1", history={FILM}), TypeError, ["history", "oldest first"]),
    "history a table": (dict(user="u1", history={FILM: 5}), TypeError, ["history", "list"]),
    "history bytes": (dict(user="u1", history=b"Film"), TypeError, ["history", "list"]),
    "history of rows": (dict(user="u1", history=[3]), TypeError, ["history[0]", "Item(3)", "'3'"]),
    "history of numpy rows": (dict(user="u1", history=np.array([3, 8])), TypeError, ["history[0]", "Item(3)"]),
    "history with one row": (dict(user="u1", history=[FILM, 8]), TypeError, ["history[1]", "Item(8)"]),
    "history with a user": (dict(user="u1", history=[User(1)]), TypeError, ["history[0]", "User(row=1)"]),
    "history with None": (dict(user="u1", history=[Item(1), None]), TypeError, ["history[1]", "None"]),
    "history with True": (dict(user="u1", history=[True]), TypeError, ["history[0]", "True"]),
    "history in a history": (dict(user="u1", history=[[Item(1)]]), TypeError, ["history[0]"]),
    "history beyond the last": (dict(user="u1", history=[Item(15)]), IndexError, ["Item(row=15)", "15 items"]),
    "history of an unknown title": (dict(user="u1", history=["Filmm 3"]), LookupError, ["Filmm 3", "Close", "Film"]),
    "history of an empty title": (dict(user="u1", history=[""]), LookupError, ["no item", "''"]),
    "history of a long title": (dict(user="u1", history=[LONG]), LookupError, ["no item"]),
    "history too long": (dict(user="u1", history=[Item(3)] * 200), ValueError, ["history", "200 items", "512"]),
    "k none": (dict(user="u1", k=0), ValueError, ["k is 0", "from 1"]),
    "k negative": (dict(user="u1", k=-1), ValueError, ["k is -1"]),
    "k a fraction": (dict(user="u1", k=2.5), TypeError, ["k is 2.5"]),
    "k a whole fraction": (dict(user="u1", k=2.0), TypeError, ["k is 2.0"]),
    "k True": (dict(user="u1", k=True), TypeError, ["k is True"]),
    "k a text": (dict(user="u1", k="3"), TypeError, ["k is '3'"]),
    "k None": (dict(user="u1", k=None), TypeError, ["k is None"]),
    "k an array": (dict(user="u1", k=np.array([3])), TypeError, ["k is array([3])"]),
    "k nan": (dict(user="u1", k=float("nan")), TypeError, ["k is nan"]),
    "exclude a text": (dict(user="u1", exclude_history="no"), TypeError, ["exclude_history", "'no'"]),
    "exclude a number": (dict(user="u1", exclude_history=0), TypeError, ["exclude_history", "True or False"]),
    "exclude None": (dict(user="u1", exclude_history=None), TypeError, ["exclude_history"]),
}


@pytest.mark.parametrize("case", RECOMMEND)
def test_recommend_refuses(ilm, case):
    arguments, error, says = RECOMMEND[case]
    refused(lambda: ilm.recommend(**arguments), *says)
    with pytest.raises(error):
        ilm.recommend(**arguments)


@pytest.mark.parametrize("case", [c for c in RECOMMEND if c not in ("user None, and no fold-in", "history too long")])
def test_the_llm_alone_refuses_the_same(bare, case):
    arguments, _, says = RECOMMEND[case]
    refused(lambda: bare.recommend(**arguments), *says)


ROOM = ["a " * 300]
GENERATE = {
    "an item": ((Item(17),), {}, TypeError, ["list of str, Item and User", "Item(row=17)"]),
    "a number": ((17,), {}, TypeError, ["list", "17"]),
    "None": ((None,), {}, TypeError, ["list", "None"]),
    "bytes": ((b"text",), {}, TypeError, ["list"]),
    "a table": (({"role": "user"},), {}, TypeError, ["list"]),
    "a set": (({"a"},), {}, TypeError, ["list"]),
    "an array": ((np.array(["a"]),), {}, TypeError, ["list"]),
    "nothing": (([],), {}, ValueError, ["the prompt is empty"]),
    "an empty text": (("",), {}, ValueError, ["the prompt is empty"]),
    "empty texts": ((["", ""],), {}, ValueError, ["the prompt is empty"]),
    "a list of nothing": (([[]],), {}, ValueError, ["prompt 0 is empty"]),
    "the second is empty": (([["a"], []],), {}, ValueError, ["prompt 1 is empty"]),
    "None within": ((["a", None],), {}, TypeError, ["the prompt", "None"]),
    "a row within": ((["a", 3],), {}, TypeError, ["the prompt", "Item(3)", "User(3)"]),
    "True within": ((["a", True],), {}, TypeError, ["the prompt", "True"]),
    "a fraction within": ((["a", 1.5],), {}, TypeError, ["1.5"]),
    "bytes within": ((["a", b"b"],), {}, TypeError, ["b'b'"]),
    "a list within": ((["a", ["b"]],), {}, TypeError, ["another list", "['b']"]),
    "a text beside lists": (([["a"], "b"],), {}, TypeError, ["another list", "['a']"]),
    "lists of lists": (([[["a"]]],), {}, TypeError, ["prompt 0", "another list"]),
    "None in the second": (([["a"], ["b", None]],), {}, TypeError, ["prompt 1", "None"]),
    "a turn of a chat": (([{"role": "user", "content": "hi"}],), {}, TypeError, ["the prompt", "role"]),
    "item beyond the last": ((["a", Item(15)],), {}, IndexError, ["Item(row=15)", "15 items"]),
    "user beyond the last": ((["a", User(9)],), {}, IndexError, ["User(row=9)", "9 users"]),
    "user far beyond": ((["a", User(10**6)],), {}, IndexError, ["9 users"]),
    "user beyond 64 bits": ((["a", User(10**30)],), {}, IndexError, ["9 users"]),
    "too long": ((["item_12"] * 400,), {}, ValueError, ["the prompt is", "reads 512"]),
    "the second too long": (([["a"], ["item_12"] * 400],), {}, ValueError, ["prompt 1 of 2", "reads 512"]),
    "no room for an answer": ((ROOM,), dict(max_new_tokens=500), ValueError, ["is 500", "512", "at most"]),
    "no new tokens": ((["a"],), dict(max_new_tokens=0), ValueError, ["max_new_tokens is 0"]),
    "negative new tokens": ((["a"],), dict(max_new_tokens=-1), ValueError, ["max_new_tokens is -1"]),
    "half a token": ((["a"],), dict(max_new_tokens=1.5), TypeError, ["max_new_tokens is 1.5"]),
    "new tokens None": ((["a"],), dict(max_new_tokens=None), TypeError, ["max_new_tokens is None"]),
    "new tokens True": ((["a"],), dict(max_new_tokens=True), TypeError, ["max_new_tokens is True"]),
    "several texts": ((["a"],), dict(num_return_sequences=3), ValueError, ["num_return_sequences", "do_sample=True"]),
    "a misspelt argument": ((["a"],), dict(temprature=0.5), TypeError, ["temprature", "'temperature'"]),
    "an unknown argument": ((["a"],), dict(qqqq=1), TypeError, ["qqqq"]),
    "a private argument": ((["a"],), dict(_from_model_config=1), TypeError, ["_from_model_config"]),
    "max_length": ((["a"],), dict(max_length=9), TypeError, ["max_length", "max_new_tokens"]),
    "a config": ((["a"],), dict(generation_config=5), TypeError, ["generation_config", "options"]),
    "stop strings": ((["a"],), dict(stop_strings=["."]), TypeError, ["stop_strings", "cut"]),
    "a million beams": ((["a"],), dict(num_beams=10**6), ValueError, ["num_beams", "1,000"]),
    "half a character": (("caf\udce9",), {}, ValueError, ["half of a character"]),
    "half a character in a batch": (([["a"], ["b\ud800"]],), {}, ValueError, ["prompt 1", "half of a character"]),
    "input_ids": ((["a"],), dict(input_ids=[1]), TypeError, ["input_ids", "prompt"]),
    "inputs_embeds": ((["a"],), dict(inputs_embeds=1), TypeError, ["inputs_embeds", "prompt"]),
    "attention_mask": ((["a"],), dict(attention_mask=1), TypeError, ["attention_mask"]),
    "code from outside": ((["a"],), dict(custom_generate="x/y"), TypeError, ["custom_generate", "code"]),
    "trusted code": ((["a"],), dict(trust_remote_code=True), TypeError, ["trust_remote_code", "code"]),
    "a dict wanted": ((["a"],), dict(return_dict_in_generate=True), ValueError, ["return_dict_in_generate"]),
    "do_sample a text": ((["a"],), dict(do_sample="yes"), ValueError, ["do_sample", "'yes'"]),
    "temperature 0": ((["a"],), dict(do_sample=True, temperature=0), ValueError, ["temperature", "do_sample=False"]),
    "temperature 0.0": ((["a"],), dict(do_sample=True, temperature=0.0), ValueError, ["temperature"]),
    "temperature negative": ((["a"],), dict(do_sample=True, temperature=-1), ValueError, ["temperature is -1"]),
    "temperature infinite": ((["a"],), dict(do_sample=True, temperature=float("inf")), ValueError, ["temperature"]),
    "temperature nan": ((["a"],), dict(do_sample=True, temperature=float("nan")), ValueError, ["temperature"]),
    "temperature a text": ((["a"],), dict(do_sample=True, temperature="hot"), ValueError, ["temperature", "'hot'"]),
    "temperature when greedy": ((["a"],), dict(temperature=0.5), ValueError, ["temperature", "do_sample=True"]),
    "top_p when greedy": ((["a"],), dict(top_p=0.5, do_sample=False), ValueError, ["top_p", "do_sample=True"]),
    "top_p 0": ((["a"],), dict(do_sample=True, top_p=0), ValueError, ["top_p"]),
    "top_p 2": ((["a"],), dict(do_sample=True, top_p=2), ValueError, ["top_p is 2"]),
    "top_k negative": ((["a"],), dict(do_sample=True, top_k=-1), ValueError, ["top_k is -1"]),
    "top_k a fraction": ((["a"],), dict(do_sample=True, top_k=1.5), ValueError, ["top_k is 1.5"]),
    "no beams": ((["a"],), dict(num_beams=0), ValueError, ["num_beams is 0"]),
    "half a beam": ((["a"],), dict(num_beams=1.5), ValueError, ["num_beams is 1.5"]),
    "repetition": ((["a"],), dict(repetition_penalty=0), ValueError, ["repetition_penalty is 0"]),
}


@pytest.mark.parametrize("case", GENERATE)
def test_generate_refuses(ilm, case):
    given, options, error, says = GENERATE[case]
    refused(lambda: ilm.generate(*given, **options), *says)
    with pytest.raises(error):
        ilm.generate(*given, **options)


@pytest.mark.parametrize("prompt", [["a", Item(3)], ["a", User(3)], [["a"], ["b", Item(0)]]])
def test_an_llm_without_item_encoder_is_shown_no_slots(bare, prompt):
    refused(lambda: bare.generate(prompt), "row=", "no item encoder")
    assert isinstance(bare.generate(["a"], max_new_tokens=2), str)


LOOK_UPS = {
    "item of a row": ("item", 17, TypeError, ["17", "Item(17)", "'17'"]),
    "item of an Item": ("item", Item(3), TypeError, ["Item"]),
    "item of None": ("item", None, TypeError, ["None"]),
    "item of True": ("item", True, TypeError, ["True"]),
    "item of bytes": ("item", b"Film 3", TypeError, ["b'Film 3'"]),
    "item of a list": ("item", [FILM], TypeError, ["['Film 3']"]),
    "item of nothing": ("item", "", LookupError, ["''"]),
    "item of a blank": ("item", " ", LookupError, ["' '"]),
    "item of a long name": ("item", LONG, LookupError, ["no item"]),
    "item of a close name": ("item", "Flim 3", LookupError, ["Flim 3", "Close", "'Film 3'"]),
    "user of a row": ("user", 3, TypeError, ["User(3)", "'3'"]),
    "user of a User": ("user", User(3), TypeError, ["User"]),
    "user of None": ("user", None, TypeError, ["None"]),
    "user of nobody": ("user", "alice", LookupError, ["alice"]),
    "title of a row": ("title", 17, TypeError, ["17", "Item(17)"]),
    "title of a user": ("title", User(3), TypeError, ["User(row=3)", "Item"]),
    "title of a title": ("title", FILM, TypeError, ["'Film 3'", "Item"]),
    "title of None": ("title", None, TypeError, ["None"]),
    "title of True": ("title", True, TypeError, ["True"]),
    "title beyond the last": ("title", Item(15), IndexError, ["Item(row=15)", "0 to 14"]),
    "id of a row": ("id", 17, TypeError, ["17", "Item"]),
    "id of an id": ("id", "i3", TypeError, ["'i3'", "Item"]),
    "id of None": ("id", None, TypeError, ["None"]),
    "id far beyond": ("id", Item(10**6), IndexError, ["1000000", "0 to 14"]),
    "id of a user beyond": ("id", User(9), IndexError, ["User(row=9)", "0 to 8"]),
}


@pytest.mark.parametrize("case", LOOK_UPS)
def test_look_ups_refuse(ilm, case):
    method, given, error, says = LOOK_UPS[case]
    refused(lambda: getattr(ilm, method)(given), *says)
    with pytest.raises(error):
        getattr(ilm, method)(given)


def test_names_that_many_have_are_told_in_one_short_message(ilm, tasks):
    long = [f"A film of a rather long name indeed, the one of number {n} (1995)" for n in range(15)]
    titles = ["Twins" if n % 2 else long[n] for n in range(15)]
    values = {**vars(tasks.catalogue()), "titles": titles}
    named = ILM(ilm.llm, ilm.tokenizer, None, ilm.cf, 15, Catalogue(**values))
    refused(lambda: named.item("Twins"), "7 items", "'Twins'", "(id 'i1')", "more")
    refused(lambda: named.item(long[0][:-3]), "no item", "Close")


MISFITS = {  # changes of a catalogue, of I, of the embeddings
    "titles": (lambda c: {"titles": c.titles[1:]}, 15, 24, ["14 titles", "15"]),
    "item ids": (lambda c: {"item_ids": [*c.item_ids, "x"]}, 15, 24, ["16 item ids"]),
    "user ids": (lambda c: {"user_ids": c.user_ids[:3]}, 15, 24, ["3 user ids", "9"]),
    "texts": (lambda c: {"texts": ["a text"]}, 15, 24, ["1 texts", "15"]),
    "weights": (lambda c: {"weights": [1.0] * 16}, 15, 24, ["16 weights", "15"]),
    "fewer embeddings": (lambda c: {}, 15, 23, ["9 user ids", "8"]),
    "items alone": (lambda c: {}, 15, 15, ["9 user ids", "0"]),
    "more items": (lambda c: {}, 16, 24, ["15 item ids", "16"]),
    "no items": (lambda c: {}, 0, 24, ["0 items", "(24, 6)"]),
    "more items than rows": (lambda c: {}, 25, 24, ["25 items", "(24, 6)"]),
    "half an item": (lambda c: {}, 1.5, 24, ["1.5 items"]),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_belong_together_makes_no_model(ilm, tasks, case):
    changes, items, rows, says = MISFITS[case]
    old = tasks.catalogue()
    catalogue = Catalogue(**{**vars(old), **changes(old)})
    cf = torch.zeros(rows, 6)
    refused(lambda: ILM(ilm.llm, ilm.tokenizer, ilm.encoder, cf, items, catalogue), *says)


def test_what_is_right_is_taken(ilm, able):
    best = ilm.recommend(User(5), [Item(3), Item(8)], k=4)
    same = lambda *given, **options: [r.item for r in ilm.recommend(*given, **options)] == [r.item for r in best]
    assert same("u5", ["Film 3", "i8"], 4) and same(User(np.int64(5)), (Item(np.int32(3)), "Film 8"), np.int64(4))
    assert same("u5", iter([Item(3), "film 8"]), 4, exclude_history=np.True_) and same("u5", np.array(["i3", "i8"]), 4)
    every = ilm.recommend("u5", [Item(3)], k=10**9)  # as many as there are
    assert len(every) == 14 and len(ilm.recommend("u5", [Item(3)], k=10**9, exclude_history=False)) == 15
    assert len(able.recommend(history=[Item(3)], k=3)) == 3
    once = ilm.generate(["A", "B"], max_new_tokens=3)  # adjacent strings are one text
    assert once == ilm.generate("AB", max_new_tokens=3) == ilm.generate(["AB"], max_new_tokens=3)
    assert ilm.generate([["A"], ("B",)], max_new_tokens=3) == [ilm.generate(t, max_new_tokens=3) for t in "AB"]
    assert isinstance(ilm.generate(["a"], max_new_tokens=np.int64(2), num_return_sequences=1, num_beams=2), str)
    assert isinstance(ilm.generate(["a"], max_new_tokens=2, do_sample=True, temperature=0.5, top_p=0.9, top_k=0), str)


# ------------------------------------------------------------ a user whom the model does not know


@pytest.mark.parametrize("engine", ["irspack", "implicit"])
def test_folded_in_a_training_user_has_nearly_the_trained_vector(engine):
    rng = np.random.default_rng(0)
    taste, kind = rng.normal(size=(2, 6)), rng.normal(size=(120, 2))
    likes = kind @ taste + rng.gumbel(size=(120, 6))
    from scipy.sparse import csr_matrix

    blocks = rng.random((120, 60)) < 0.05 + 0.3 * (np.repeat(likes.argmax(1), 60).reshape(120, 60) == np.arange(60) % 6)
    train = csr_matrix(blocks.astype(np.float32))
    cf = fit_cf(train, engine=engine, dim=8)
    table, fold = cf.scaled_table(), fold_in(cf, engine=engine)
    items, users = table[:60], table[60:]
    mine = np.stack([fold(items, train[u].indices) for u in range(120)])
    cosine = (mine * users).sum(1) / np.linalg.norm(mine, axis=1) / np.linalg.norm(users, axis=1)
    assert cosine.min() > 0.98 and np.median(cosine) > 0.999
    assert np.median(np.linalg.norm(mine, axis=1) / np.linalg.norm(users, axis=1)) == pytest.approx(1, abs=0.02)
    top = lambda vectors: [{*np.argsort(-v @ items.T)[:10].tolist()} for v in vectors]
    assert np.mean([len(a & b) / 10 for a, b in zip(top(mine), top(users))]) > 0.95
    np.testing.assert_array_equal(mine[0], fold(items, [*train[0].indices, *train[0].indices]))  # repeats count once


def test_with_the_trained_vector_a_stranger_is_read_as_that_user_but_for_the_name(able):
    """The guest's vector goes the way of a user's of the table."""
    prompt = able.catalogue.indexing.render(able.catalogue.sequential, User(able.num_users), [3, 8])
    known = [User(2) if isinstance(s, User) else s for s in prompt]
    with torch.no_grad():
        guest, own = able.prefill([prompt], able.cf[15 + 2][None]), able.prefill([known])
    torch.testing.assert_close(guest.logits, own.logits)
    assert "user_0" in "".join(s for s in prompt if isinstance(s, str))


def test_strangers_differ_by_their_histories(able):
    a, b = (able.recommend(history=[Item(i), Item(8)], k=5) for i in (3, 5))
    assert [r.log_probability for r in a] != [r.log_probability for r in b]
    assert not {r.item for r in a} & {Item(3), Item(8)}


def test_the_llm_alone_needs_no_vector_of_a_stranger(bare):
    assert len(bare.recommend(history=["Film 3"], k=5)) == 5
