"""The folder of a saved model, broken in every way that disks, networks and hands break folders."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from plain import refused
from safetensors.torch import load_file, save_file

from ilm_lib.files import sha256
from ilm_lib.model.fold_in import FoldIn
from ilm_lib.model.folder import verify
from ilm_lib.model.ilm import ILM
from ilm_lib.model.prompts import Item, User

FILES = [
    "README.md",
    "backbone/config.json",
    "backbone/generation_config.json",
    "backbone/model.safetensors",
    "backbone/tokenizer.json",
    "backbone/tokenizer_config.json",
    "ilm.json",
    "ilm.safetensors",
    "manifest.json",
]


@pytest.fixture(scope="module")
def model(new_ilm):
    ilm = new_ilm("mlp")
    ilm.fold_in = FoldIn(0.1, 1.0, 0.1, 0.01, 1.0, 1.0)
    return ilm


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    return model.save_pretrained(tmp_path_factory.mktemp("models") / "ilm")


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to break."""
    return Path(shutil.copytree(saved, tmp_path / "ilm"))


def resign(folder):
    """Make a manifest for what is there now: what then is wrong must be found by what it says."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    manifest["files"] = {
        name: {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size}
        for name in names
        if name not in ("README.md", "manifest.json")
    }
    path.write_text(json.dumps(manifest))


def test_these_are_the_files(saved):
    assert sorted(p.relative_to(saved).as_posix() for p in saved.rglob("*") if p.is_file()) == FILES


def flip(place):
    def hurt(path):
        data = bytearray(path.read_bytes())
        data[min(int(place * len(data)), len(data) - 1)] ^= 1
        path.write_bytes(data)

    return hurt


def to_folder(path):
    path.unlink()
    path.mkdir()


HURTS = {
    "first byte": flip(0),
    "a byte at a tenth": flip(0.1),
    "a byte at a quarter": flip(0.25),
    "a byte in the middle": flip(0.5),
    "a byte at three quarters": flip(0.75),
    "last byte": flip(1),
    "cut by a byte": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "cut in half": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "emptied": lambda p: p.write_bytes(b""),
    "a byte more": lambda p: p.write_bytes(p.read_bytes() + b"x"),
    "zeros": lambda p: p.write_bytes(bytes(p.stat().st_size)),
    "deleted": Path.unlink,
    "a folder": to_folder,
    "a link to nothing": lambda p: (p.unlink(), p.symlink_to("nowhere")),
}


@pytest.mark.parametrize("hurt", HURTS)
@pytest.mark.parametrize("name", FILES)
def test_what_was_changed_after_it_was_saved_is_refused(folder, name, hurt):
    HURTS[hurt](folder / name)
    if name == "README.md":
        verify(folder)
        assert ILM.from_pretrained(folder).recommend(User(1), k=1)
    else:
        refused(lambda: ILM.from_pretrained(folder), name)


def test_no_byte_of_the_manifest_can_change(folder):
    path = folder / "manifest.json"
    right = path.read_bytes()
    for place in range(0, len(right), 3):
        path.write_bytes(right[:place] + bytes([right[place] ^ (1, 4, 32)[place % 9 // 3]]) + right[place + 1 :])
        with pytest.raises(ValueError):
            verify(folder)
    path.write_bytes(right)
    verify(folder)


def test_the_card_may_be_edited(folder, model):
    (folder / "README.md").write_text("mine")
    (folder / ".gitattributes").write_text("what a hub adds")
    (folder / "backbone" / ".DS_Store").write_text("what a desktop adds")
    again = ILM.from_pretrained(folder)
    found, wanted = (m.recommend(User(5), [Item(3)]) for m in (again, model))
    assert [r.item for r in found] == [r.item for r in wanted]


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "added_tokens.json", "special_tokens_map.json", "pytorch_model.bin", "modeling.py"]
)
def test_a_file_beside_the_llms_is_refused(folder, name):
    (folder / "backbone" / name).write_text("{}")
    refused(lambda: ILM.from_pretrained(folder), name, "backbone/")


# ------------------------------------------------------------ a manifest that fits, and contents that do not


def config(**changes):
    def change(folder):
        path = folder / "ilm.json"
        values = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))

    return change


def of_catalogue(**changes):
    def change(folder):
        path = folder / "ilm.json"
        values = json.loads(path.read_text())
        values["catalogue"] = {k: v for k, v in (values["catalogue"] | changes).items() if v is not ...}
        path.write_text(json.dumps(values))

    return change


def of_encoder(**changes):
    def change(folder):
        path = folder / "ilm.json"
        values = json.loads(path.read_text())
        values["encoder"] = {k: v for k, v in (values["encoder"] | changes).items() if v is not ...}
        path.write_text(json.dumps(values))

    return change


def tensors(change):
    def changed(folder):
        path = folder / "ilm.safetensors"
        weights = load_file(path)
        weights = {k: v.clone() for k, v in weights.items()}
        save_file(change(weights) or weights, path)

    return changed


def put(name, place, value):
    return tensors(lambda w: w[name].view(-1).__setitem__(place, value))


def text(name, content):
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


NAN, INF = float("nan"), float("inf")
WRONG = {  # what was done, and what the message names
    "json a list": (text("ilm.json", "[1]"), ["ilm.json", "[1]"]),
    "json a text": (text("ilm.json", '"hi"'), ["ilm.json", "object"]),
    "json null": (text("ilm.json", "null"), ["ilm.json", "None"]),
    "json cut": (text("ilm.json", '{"encoder": '), ["ilm.json", "no JSON"]),
    "json of another encoding": (text("ilm.json", '{"ä": 1}'.encode("latin1")), ["ilm.json", "no JSON"]),
    "json too deep": (text("ilm.json", "[" * 100_000), ["ilm.json", "no JSON"]),
    "json empty": (text("ilm.json", "{}"), ["ilm.json", "format"]),
    "format 2": (config(format=2), ["ilm.json", "format"]),
    "format of the future": (config(format=4), ["ilm.json", "format", "4"]),
    "a key more": (config(colour="red"), ["ilm.json", "colour"]),
    "a key less": (config(item_positions=...), ["ilm.json", "item_positions"]),
    "an unknown choice": (config(item_positions="other"), ["ilm.json", "item_positions", "other"]),
    "no items": (config(num_items=0), ["ilm.json", "num_items"]),
    "items negative": (config(num_items=-1), ["ilm.json", "num_items"]),
    "items as text": (config(num_items="15"), ["ilm.json", "num_items"]),
    "items as a fraction": (config(num_items=15.0), ["ilm.json", "num_items"]),
    "items True": (config(num_items=True), ["ilm.json", "num_items"]),
    "users negative": (config(num_users=-1), ["ilm.json", "num_users"]),
    "fewer items": (config(num_items=14), ["cf", "(24, 6)"]),
    "items and users exchanged": (config(num_items=9, num_users=15), ["ilm.json", "item ids"]),
    "more users": (config(num_users=10), ["ilm.safetensors", "cf", "(24, 6)", "(25, 6)"]),
    "encoder a text": (config(encoder="mlp"), ["ilm.json", "encoder"]),
    "encoder of no kind": (of_encoder(kind=...), ["ilm.json", "encoder"]),
    "encoder of another kind": (of_encoder(kind="qformer"), ["ilm.json", "encoder"]),
    "encoder narrower": (of_encoder(cf_dim=5), ["ilm.safetensors"]),
    "encoder of more tokens": (of_encoder(num_tokens=4), ["ilm.safetensors", "encoder."]),
    "encoder of another llm": (of_encoder(llm_width=48, num_tokens=2), ["ilm.json", "width 32"]),
    "encoder's size a text": (of_encoder(cf_dim="6"), ["ilm.json", "encoder"]),
    "encoder's size negative": (of_encoder(cf_dim=-6), ["ilm.json", "encoder"]),
    "no encoder, and its weights": (config(encoder=None), ["ilm.safetensors", "unknown"]),
    "fold_in of text": (config(fold_in={"unobserved": "x"}), ["ilm.json", "fold_in"]),
    "fold_in of part": (config(fold_in={"unobserved": 0.1}), ["ilm.json"]),
    "catalogue a list": (config(catalogue=[]), ["ilm.json", "catalogue"]),
    "catalogue without ids": (of_catalogue(item_ids=...), ["ilm.json", "ids"]),
    "catalogue without titles": (of_catalogue(titles=...), ["ilm.json", "titles"]),
    "catalogue without templates": (of_catalogue(sequential=...), ["ilm.json", "sequential"]),
    "a title less": (of_catalogue(titles=["a"] * 14), ["ilm.json", "14 titles", "15"]),
    "ids a number": (of_catalogue(item_ids=3), ["ilm.json"]),
    "an id more": (of_catalogue(item_ids="\n".join("abcdefghijklmnop")), ["ilm.json", "16 item ids"]),
    "indexes less": (of_catalogue(item_index=[1, 2]), ["ilm.json", "2 item indexes"]),
    "users less": (of_catalogue(user_ids="u0"), ["ilm.json", "1 user ids", "9"]),
    "a vector nan": (put("cf", 13, NAN), ["ilm.safetensors", "cf", "finite", "row 2"]),
    "a vector infinite": (put("cf", 0, INF), ["ilm.safetensors", "cf", "finite", "row 0"]),
    "the last number nan": (put("cf", -1, NAN), ["ilm.safetensors", "cf", "row 23"]),
    "a weight nan": (put("encoder.up.weight", 7, NAN), ["ilm.safetensors", "encoder.up.weight", "finite"]),
    "a bias infinite": (put("encoder.out.bias", 0, -INF), ["ilm.safetensors", "encoder.out.bias"]),
    "no vectors": (tensors(lambda w: {k: v for k, v in w.items() if k != "cf"}), ["ilm.safetensors", "cf is missing"]),
    "a weight less": (tensors(lambda w: w.pop("encoder.up.bias") is None), ["encoder.up.bias is missing"]),
    "a weight more": (tensors(lambda w: w.update(extra=torch.ones(2))), ["ilm.safetensors", "extra is unknown"]),
    "vectors of whole numbers": (tensors(lambda w: {**w, "cf": w["cf"].long()}), ["cf", "int64"]),
    "vectors flat": (tensors(lambda w: {**w, "cf": w["cf"].flatten()}), ["ilm.safetensors", "cf", "(144,)"]),
    "vectors wider": (tensors(lambda w: {**w, "cf": torch.ones(24, 7)}), ["ilm.safetensors", "cf", "(24, 7)"]),
    "a row less": (tensors(lambda w: {**w, "cf": w["cf"][1:].clone()}), ["ilm.safetensors", "(23, 6)"]),
    "no safetensors": (text("ilm.safetensors", "hello"), ["ilm.safetensors"]),
    "a pickle": (text("ilm.safetensors", b"\x80\x04\x95\x00cos\nsystem\n."), ["ilm.safetensors"]),
    "a header of 2^60": (text("ilm.safetensors", (1 << 60).to_bytes(8, "little") + b"{}"), ["ilm.safetensors"]),
    "no config of the llm": (lambda f: (f / "backbone/config.json").unlink(), ["backbone"]),
    "config of the llm empty": (text("backbone/config.json", "{}"), ["backbone"]),
    "config of the llm no json": (text("backbone/config.json", "{"), ["backbone"]),
    "an llm of code": (
        text("backbone/config.json", '{"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}'),
        ["backbone"],
    ),
    "no weights of the llm": (lambda f: (f / "backbone/model.safetensors").unlink(), ["backbone"]),
    "weights of the llm no safetensors": (text("backbone/model.safetensors", "x"), ["backbone"]),
    "no tokenizer": (lambda f: (f / "backbone/tokenizer.json").unlink(), ["backbone"]),
    "tokenizer no json": (text("backbone/tokenizer.json", "{"), ["backbone"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused(folder, case):
    change, says = WRONG[case]
    change(folder)
    resign(folder)
    refused(lambda: ILM.from_pretrained(folder), *says)


def of_manifest(change):
    def changed(folder):
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps(change(manifest) or manifest))

    return changed


NO_MODEL = {
    "no manifest": (lambda f: (f / "manifest.json").unlink(), ["manifest.json", "earlier version", "Train or save"]),
    "no model": (lambda f: (f / "manifest.json").unlink() or (f / "ilm.json").unlink(), ["ilm.json", "no model"]),
    "an empty folder": (lambda f: shutil.rmtree(f) or f.mkdir(), ["ilm.json", "no model"]),
    "no folder": (shutil.rmtree, ["no model", "no such folder", "make study"]),
    "a file": (lambda f: shutil.rmtree(f) or f.write_text("x"), ["is a file"]),
    "manifest a list": (text("manifest.json", "[]"), ["manifest.json", "object"]),
    "manifest of the future": (of_manifest(lambda m: {**m, "format": 9}), ["manifest.json", "9", "version"]),
    "manifest of no files": (of_manifest(lambda m: {"format": 3}), ["manifest.json", "files"]),
    "manifest of names alone": (of_manifest(lambda m: {**m, "files": [*m["files"]]}), ["manifest.json", "files"]),
    "manifest without digests": (of_manifest(lambda m: m["files"].update({"ilm.json": {}})), ["ilm.json"]),
    "manifest with a number": (of_manifest(lambda m: m["files"].update({"ilm.json": 3})), ["manifest.json", "files"]),
    "manifest without ilm.json": (of_manifest(lambda m: {**m, "files": {}}), ["manifest.json", "ilm.json"]),
    "a file of elsewhere": (of_manifest(lambda m: m["files"].update({"../x": {}})), ["manifest.json", "'../x'"]),
    "a file of the root": (of_manifest(lambda m: m["files"].update({"/etc/passwd": {}})), ["manifest.json", "outside"]),
    "a file of a drive": (of_manifest(lambda m: m["files"].update({"C:\\x": {}})), ["manifest.json", "outside"]),
}


@pytest.mark.parametrize("case", NO_MODEL)
def test_what_is_no_model_is_refused(folder, case):
    change, says = NO_MODEL[case]
    change(folder)
    refused(lambda: ILM.from_pretrained(folder), *says)


def test_what_is_missing_is_a_missing_file_too(tmp_path):
    for missing in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError):
            ILM.from_pretrained(missing)


@pytest.mark.parametrize("given", [None, 5, "", "a\0b", b"runs", ["runs"], True])
def test_a_folder_is_a_path(model, given):
    refused(lambda: ILM.from_pretrained(given), "folder")
    refused(lambda: model.save_pretrained(given), "folder")


@pytest.mark.parametrize("dtype", ["float7", "int8", torch.int8, 16, None, "nn", float])
def test_a_type_of_weights_is_one_of_torchs(saved, dtype):
    refused(lambda: ILM.from_pretrained(saved, dtype=dtype), "dtype", "bfloat16")


def test_a_name_that_is_no_argument_is_pythons_own_error(saved):
    with pytest.raises(TypeError, match="torch_dtype"):
        ILM.from_pretrained(saved, torch_dtype="bfloat16")


# ------------------------------------------------------------ an LLM by its name


@pytest.fixture(scope="module")
def by_name(model, tmp_path_factory):
    root = tmp_path_factory.mktemp("named")
    model.llm.save_pretrained(root / "llm")
    model.tokenizer.save_pretrained(root / "llm")
    model.save_pretrained(root / "ilm", backbone=str(root / "llm"))
    return root


def swap_tokens(llm):
    path = llm / "tokenizer.json"
    state = json.loads(path.read_text())
    vocab = state["model"]["vocab"]
    a, b = [t for t in vocab if t.isalpha()][-2:]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    path.write_text(json.dumps(state))


def drop_a_merge(llm):
    path = llm / "tokenizer.json"
    state = json.loads(path.read_text())
    state["model"]["merges"].pop(60)
    path.write_text(json.dumps(state))


def no_splitter(llm):
    path = llm / "tokenizer.json"
    state = json.loads(path.read_text())
    state["pre_tokenizer"]["pretokenizers"].pop(0)
    path.write_text(json.dumps(state))


def another_end(llm):
    path = llm / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": "[PAD]"}))


def another_weight(llm):
    weights = load_file(llm / "model.safetensors")
    weights["model.norm.weight"][3] += 1e-3
    save_file(weights, llm / "model.safetensors", metadata={"format": "pt"})


NAMED = {
    "two tokens exchanged": (swap_tokens, "tokenizer"),
    "a merge less": (drop_a_merge, "tokenizer"),
    "words found otherwise": (no_splitter, "tokenizer"),
    "another end": (another_end, "tokenizer"),
    "another weight": (another_weight, "weights"),
    "gone": (shutil.rmtree, "llm"),
}


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
@pytest.mark.parametrize("case", NAMED)
def test_an_llm_that_is_not_the_one_of_training_is_refused(by_name, tmp_path, model, case, dtype):
    llm = Path(shutil.copytree(by_name / "llm", tmp_path / "llm"))
    folder = model.save_pretrained(tmp_path / "ilm", backbone=str(llm))
    change, says = NAMED[case]
    change(llm)
    refused(lambda: ILM.from_pretrained(folder, dtype=dtype), says)


def test_the_named_llm_comes_in_the_type_that_is_asked_for(by_name, saved):
    for folder in (by_name / "ilm", saved):
        assert ILM.from_pretrained(folder).llm.dtype == torch.float32
        for dtype in ("bfloat16", torch.bfloat16):
            assert ILM.from_pretrained(folder, dtype=dtype).llm.dtype == torch.bfloat16


# ------------------------------------------------------------ saving, and saving without users


def test_nothing_else_is_replaced_by_a_model(model, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for taken in ("mine", "file"):
        refused(lambda taken=taken: model.save_pretrained(tmp_path / taken), taken, "new folder")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    assert model.save_pretrained(tmp_path / "empty") == tmp_path / "empty"


def test_a_model_that_could_not_be_loaded_is_not_saved(new_ilm, tmp_path):
    ilm = new_ilm("mlp")
    refused(lambda: ilm.save_pretrained(tmp_path / "a", users="no"), "users", "'no'")
    refused(lambda: ilm.save_pretrained(tmp_path / "a", users=False), "users=False", "fold_in")
    ilm.cf[4, 2] = NAN
    refused(lambda: ilm.save_pretrained(tmp_path / "a"), "cf", "finite", "row 4")
    ilm = new_ilm("mlp")
    object.__setattr__(ilm.catalogue, "item_ids", ["a\nb", *ilm.catalogue.item_ids[1:]])
    refused(lambda: ilm.save_pretrained(tmp_path / "a"), "line break")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("encoder", ["mlp", "qformer", "none"])
def test_without_users_nothing_of_them_is_in_the_folder(new_ilm, tmp_path, encoder):
    ilm = new_ilm(encoder)
    ilm.fold_in = FoldIn(0.1, 1.0, 0.1, 0.01, 1.0, 1.0)
    folder = ilm.save_pretrained(tmp_path / "ilm", users=False)
    whole = b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
    assert ilm.cf[3].numpy().tobytes() in whole  # an item's
    assert not any(ilm.cf[15 + u].numpy().tobytes()[:12] in whole for u in range(9))
    assert "u3" not in (folder / "ilm.json").read_text()
    card = (folder / "README.md").read_text()
    assert "15 items and no users" in card and "may remember" in card and "user=User" not in card

    again = ILM.from_pretrained(folder)
    assert (again.num_users, ilm.num_users, len(again.cf)) == (0, 9, 15)
    history = [Item(3), "Film 8", "i11"]
    found, wanted = (m.recommend(history=history, k=6) for m in (again, ilm))
    assert [r.item for r in found] == [r.item for r in wanted] and not {r.item.row for r in found} & {3, 8, 11}
    assert [r.log_probability for r in found] == pytest.approx([r.log_probability for r in wanted], abs=1e-4)
    for user in (User(0), User(5), "u3"):
        refused(lambda user=user: again.recommend(user, history), "without its users", "history")
    refused(lambda: again.recommend(), "history")
    refused(lambda: again.id(User(0)), "without its users")
    refused(lambda: again.user("u3"), "u3")
    if encoder != "none":
        refused(lambda: again.generate(["a", User(0)]), "without its users")
    third = again.save_pretrained(tmp_path / "third")  # a model without users is saved as any other
    assert [r.item for r in ILM.from_pretrained(third).recommend(history=history, k=6)] == [r.item for r in found]


def test_with_users_a_stranger_can_ask_too(saved, model):
    again = ILM.from_pretrained(saved)
    assert again.fold_in == model.fold_in and len(again.recommend(history=["Film 3"], k=4)) == 4
    assert "Vectors of all 9 users are inside" in (saved / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(backbone=""), ["backbone", "''"]),
        (dict(backbone=5), ["backbone", "5"]),
        (dict(metrics={"hr": "0.3"}), ["metrics", "'0.3'"]),
        (dict(metrics={"hr": float("nan")}), ["metrics", "nan"]),
        (dict(metrics={"a|b": 1.0}), ["metrics", "a|b"]),
    ],
    ids=str,
)
def test_what_could_not_be_followed_is_not_saved(model, tmp_path, arguments, words):
    refused(lambda: model.save_pretrained(tmp_path / "a", **arguments), *words)
    assert not list(tmp_path.iterdir())


def test_a_model_does_not_save_over_what_it_needs(model, tmp_path, monkeypatch):
    """Its own LLM by reference, the folder a program runs in, a link: none of them is lost."""
    folder = model.save_pretrained(tmp_path / "ilm")
    refused(lambda: model.save_pretrained(folder, backbone=str(folder / "backbone")), "backbone", "outside")
    verify(folder)
    monkeypatch.chdir(folder)
    refused(lambda: model.save_pretrained("."), "where this program runs")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(folder)
    before = (folder / "manifest.json").stat().st_ino
    model.save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (folder / "manifest.json").stat().st_ino != before
    (tmp_path / "file").write_text("x")
    refused(lambda: model.save_pretrained(tmp_path / "file" / "a"), "cannot be written")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_saved_in_another_type_can_be_asked(new_ilm, tmp_path, dtype):
    again = ILM.from_pretrained(new_ilm("qformer").to(dtype).save_pretrained(tmp_path / "ilm"), dtype=torch.float32)
    assert len(again.recommend(user=User(1), history=[Item(2)], k=3)) == 3
