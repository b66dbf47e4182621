"""What a large frozen LLM needs, tried on a tiny one: half the bytes, layers read again, a plan that says so."""

import pytest
import torch
from conftest import CF, ITEMS, tiny_llm

from ilm_lib import ILM, Item
from ilm_lib.model.backbone import freeze, recompute_layers, weights_fingerprint
from ilm_lib.model.encoders import MLPEncoder
from ilm_lib.plan import plan
from ilm_lib.profiles import load_params
from ilm_lib.settings import ParamsError, Phase2
from ilm_lib.study import stages
from ilm_lib.train.phase2 import answer_loss, train_phase2

KINDS = ("llama", "qwen2", "gpt2", "gemma3", "opt", "gpt_neox", "bloom")


def asked(ilm):
    """Prompts that begin alike; what they begin with is read once for all rows where the LLM can read packed rows."""
    prompts = [["Of all films which is ", Item(n), "?" * (n % 3)] for n in range(6)]
    batch = ilm.prompts.batch(prompts, [f" item_{n}" for n in range(6)], pack=True)
    assert not batch.packed or len(batch.start) > 3
    return batch


def over(tokenizer, kind="llama", dtype=torch.float32):
    torch.manual_seed(0)
    encoder, cf = MLPEncoder(CF, 32, 2), torch.randn(ITEMS, CF)
    return ILM(freeze(tiny_llm(kind, len(tokenizer)).to(dtype)), tokenizer, encoder, cf, ITEMS)


def kept_for_backward(ilm):
    """Loss, gradient of the encoder, and bytes that wait for the way back."""
    held: dict[int, int] = {}

    def note(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in ilm.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = answer_loss(ilm, asked(ilm))["loss"]
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in ilm.encoder.parameters()])
    return loss.detach(), gradient, sum(size for place, size in held.items() if place not in weights)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_read_again_give_the_same_gradients_and_keep_less(tokenizer, kind):
    loss, gradient, held = kept_for_backward(over(tokenizer, kind))
    ilm = over(tokenizer, kind)
    recompute_layers(ilm.llm)
    again, gradient_again, held_again = kept_for_backward(ilm)
    torch.testing.assert_close((again, gradient_again), (loss, gradient))
    assert gradient.abs().max() > 0 and held_again < 0.7 * held
    assert weights_fingerprint(ilm.llm) == weights_fingerprint(over(tokenizer, kind).llm), "names of weights stay"


def test_an_encoder_in_float32_learns_beside_an_llm_in_bfloat16(tokenizer, tmp_path):
    ilm = over(tokenizer, dtype=torch.bfloat16)
    before, first = weights_fingerprint(ilm.llm), float(answer_loss(ilm, asked(ilm))["loss"].detach())
    settings = Phase2(steps=40, lr=0.01, optimizer="adamw", precision="float32")
    train_phase2(tmp_path, ilm, lambda number: asked(ilm), settings, seed=0)
    assert {p.dtype for p in ilm.encoder.parameters()} == {torch.float32}
    assert {p.dtype for p in ilm.llm.parameters()} == {torch.bfloat16} and weights_fingerprint(ilm.llm) == before
    assert float(answer_loss(ilm, asked(ilm))["loss"].detach()) < 0.7 * first


@pytest.fixture
def named(tokenizer, tmp_path, monkeypatch):
    """named(dtype=...): a profile that names an LLM in a folder."""
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path / "runs"))
    tiny_llm("llama", len(tokenizer)).save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")

    def of(**kept):
        changes = {f"backbone.{name}": value for name, value in kept.items()}
        return load_params("toy", **{"backbone.pretrained": str(tmp_path / "llm")} | changes)

    return of


def test_a_profile_says_how_its_llm_is_kept(named):
    plain, small = (stages.backbone(named(**kept), 0, build=True) for kept in ({}, {"dtype": "bfloat16"}))
    assert stages.load_llm(plain)[0].dtype == torch.float32 and stages.load_llm(small)[0].dtype == torch.bfloat16
    assert plain.key != small.key and stages.backbone(named(recompute=True), 0, build=True).key != plain.key
    alone, _ = stages.load_llm(stages.backbone(named(sharded=True), 0, build=True))
    assert weights_fingerprint(alone) == weights_fingerprint(stages.load_llm(plain)[0]), "one process keeps all of it"


def test_a_plan_counts_what_is_kept(named):
    peak = lambda **kept: next(s.memory.peak for s in plan(named(**kept)).stages if s.name == "phase 2")
    assert peak(recompute=True) < peak() and peak(dtype="bfloat16") < peak()


@pytest.mark.parametrize(("key", "value"), [("dtype", "bfloat16"), ("recompute", True), ("sharded", True)])
def test_what_is_said_of_no_named_llm_is_refused(key, value):
    with pytest.raises(ParamsError, match=f"backbone.{key} is of a named LLM: set backbone.pretrained"):
        load_params("toy", **{f"backbone.{key}": value})
