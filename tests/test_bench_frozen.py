"""The benchmark of frozen weights at a toy size: both sides have the same loss and gradients, or it stops."""

import pytest

from bench import frozen


@pytest.fixture
def llm_folder(new_llm, tokenizer, tmp_path, monkeypatch):
    """A tiny LLM with a chat template, as `data.llms` leaves one."""
    template = (
        "{% for m in messages %}{{ m.role }} says in this conversation: {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}"
    )
    monkeypatch.setattr(tokenizer, "chat_template", template)
    new_llm("llama", len(tokenizer)).save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


def test_rows_of_frozen_weights(llm_folder, monkeypatch):
    monkeypatch.setattr(frozen, "in_turn", lambda ours, theirs, repeats: (ours(), theirs()) and (10.0, 40.0))
    rows = frozen.run(llm_folder, rows=4, answers=2, length=3)
    assert [row.case[0] for row in rows] == ["s", "t"] and all(row.ratio == 4 for row in rows)
    ilm, tasks = frozen.setting(llm_folder, films=80)
    assert tasks.training_batches(ilm.prompts, 4, seed=0)(0).start is not None  # what all prompts begin with
    plain = frozen.plain_loss
    monkeypatch.setattr(frozen, "plain_loss", lambda *given: 1.01 * plain(*given))
    with pytest.raises(AssertionError, match="not close"):
        frozen.run(llm_folder, rows=4, answers=2, length=3)


def test_without_the_llm_the_rows_are_left_out(tmp_path, capsys):
    assert frozen.run(tmp_path / "none") == [] and "llms smollm2" in capsys.readouterr().out
