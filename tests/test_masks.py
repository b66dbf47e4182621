import pytest
import torch

from ilm_lib.model import masks
from ilm_lib.model.masks import additive, takes_4d_mask

TAKERS = ["llama", "qwen2", "gpt2", "opt", "gpt_neox"]


def read(llm, ids, see, position):
    """Logits (T, V) of one row under a mask (T, T)."""
    with torch.no_grad():
        return llm(
            input_ids=ids[None],
            attention_mask=additive(see[None, None], torch.float32),
            position_ids=position[None],
            use_cache=False,
        ).logits[0]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", TAKERS)
def test_models_that_take_the_mask_read_a_tree_as_its_paths(new_llm, kind, implementation):
    llm = new_llm(kind, 40)
    llm.set_attn_implementation(implementation)
    assert takes_4d_mask(llm, 512)
    ids, parent = torch.tensor([5, 9, 7, 30, 11, 8, 21]), [-1, 0, 0, 1, 2, 1, 4]
    paths = []
    for node in range(7):
        paths.append([node] if parent[node] < 0 else paths[parent[node]] + [node])
    see = torch.zeros(7, 7, dtype=torch.bool)
    for node, path in enumerate(paths):
        see[node, path] = True
    logits = read(llm, ids, see, see.sum(1) - 1)
    for node, path in enumerate(paths):
        with torch.no_grad():
            alone = llm(input_ids=ids[path][None]).logits[0, -1]
        torch.testing.assert_close(logits[node], alone, atol=1e-4, rtol=1e-4)


def test_rows_beyond_a_sliding_window_are_refused(new_llm):
    llm = new_llm("gemma3", 40)  # a window of 6
    assert takes_4d_mask(llm, 6) and not takes_4d_mask(llm, 7)


def test_rows_beyond_the_context_are_refused(new_llm):
    llm = new_llm("gpt2", 40)
    assert takes_4d_mask(llm, 512) and not takes_4d_mask(llm, 513)


def test_position_biases_built_from_the_usual_mask_are_refused(new_llm):
    assert not takes_4d_mask(new_llm("bloom", 40), 4)


def test_the_trial_is_made_once_and_leaves_no_trace(new_llm, monkeypatch):
    llm, calls, trial = new_llm("gpt2", 40), [], masks._trial
    monkeypatch.setattr(masks, "_trial", lambda m: calls.append(m.training) or trial(m))
    llm.train()
    llm.transformer.h[0].eval()
    before, state = [m.training for m in llm.modules()], torch.get_rng_state()
    assert takes_4d_mask(llm, 9) and takes_4d_mask(llm, 90) and calls == [False]
    assert [m.training for m in llm.modules()] == before and torch.equal(torch.get_rng_state(), state)
    llm.set_attn_implementation("eager")
    assert takes_4d_mask(llm, 9) and len(calls) == 2


def test_a_mask_without_effect_is_refused(new_llm):
    llm = new_llm("llama", 40)
    forward = llm.forward

    def deaf(input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        return forward(input_ids=input_ids, position_ids=position_ids, **kwargs)

    llm.forward = deaf
    assert not takes_4d_mask(llm, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_additive_mask_hides_and_blind_rows_are_harmless(dtype):
    see = torch.tensor([[[[1, 0, 1], [0, 0, 0], [0, 1, 0]]]], dtype=torch.bool)
    mask = additive(see, dtype)
    assert mask.dtype == dtype and mask.isfinite().all()
    weights = (mask - 60).softmax(-1)
    assert weights.isfinite().all() and torch.equal(weights[0, 0, [0, 2]] > 0, see[0, 0, [0, 2]])
