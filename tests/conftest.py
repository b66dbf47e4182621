"""Tiny seeded models and data that the tests of the core share."""

import os
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # no test reads the network

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    Qwen2Config,
)

from ilm_lib.data import Dataset
from ilm_lib.data.templates import OUR_TEMPLATES
from ilm_lib.methods import METHODS
from ilm_lib.model.dialogue import DialoguePrompt
from ilm_lib.model.encoders import MLPEncoder, QFormerEncoder
from ilm_lib.model.fold_in import FoldIn
from ilm_lib.model.ilm import ILM
from ilm_lib.model.indexing import Indexing
from ilm_lib.model.qformer import QFormer
from ilm_lib.model.scoring import ScoreHead
from ilm_lib.model.text_tower import QFormerForPhase1
from ilm_lib.model.tokenizer import train_tokenizer
from ilm_lib.paper import RESULT_COLUMNS
from ilm_lib.settings import QFormerParams
from ilm_lib.tasks.openp5 import RecommendationTasks

torch.set_num_threads(1)

ITEMS, USERS, CF = 15, 9, 6
FOLD = FoldIn(unobserved=0.1, observed=1.0, ridge=0.01, ridge_per_item=0.01, item_scale=1.0, user_scale=1.0)


def pytest_collection_modifyitems(items):
    """The file that takes longest comes first: at the end, one of several workers would be busy with it alone."""
    items.sort(key=lambda item: item.path.name != "test_study.py")


def tiny_llm(kind, vocab, *, seed=0, spread=0.3, bos=1, eos=2):
    """A two-layer causal LM of width 32 with weights wide enough to have opinions."""
    shared = dict(vocab_size=vocab, bos_token_id=bos, eos_token_id=eos, pad_token_id=0, initializer_range=spread)
    sizes = dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=512
    )
    config = {
        "llama": lambda: LlamaConfig(**shared, **sizes, num_key_value_heads=2),
        "qwen2": lambda: Qwen2Config(**shared, **sizes, num_key_value_heads=2),
        "gpt2": lambda: GPT2Config(**shared, n_embd=32, n_layer=2, n_head=4, n_positions=512),
        "gemma3": lambda: Gemma3TextConfig(
            **shared,
            **sizes,
            num_key_value_heads=2,
            head_dim=8,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention"],
        ),
        "opt": lambda: OPTConfig(
            **{**shared, "init_std": spread},
            hidden_size=32,
            num_hidden_layers=2,
            ffn_dim=48,
            num_attention_heads=4,
            max_position_embeddings=512,
            word_embed_proj_dim=32,
        ),
        "gpt_neox": lambda: GPTNeoXConfig(**shared, **sizes),
        "bloom": lambda: BloomConfig(**shared, hidden_size=32, n_layer=2, n_head=4),
    }[kind]()
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()


def tiny_qformer(vocab=50, *, cf_dim=CF, seed=0, **changes):
    sizes = dict(num_query_tokens=3, layers=2, width=16, heads=2, contrast_dim=8, text_vocab=400, max_text_tokens=12)
    torch.manual_seed(seed)
    return QFormerForPhase1(QFormer(QFormerParams(**{**sizes, **changes}), cf_dim), vocab).eval()


def said_under(hash_seed: str, code: str, *arguments: str) -> str:
    """What a Python of its own prints that runs the code under a hash seed."""
    root = str(Path(__file__).resolve().parents[1])
    env = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": root}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=env, cwd=root, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.fixture(scope="session")
def new_llm():
    return tiny_llm


@pytest.fixture(scope="session")
def new_qformer():
    return tiny_qformer


@pytest.fixture(scope="session")
def tokenizer():
    words = [t.source.replace("{", " ").replace("}", " ") + " Toy item_1" for t in OUR_TEMPLATES]
    return train_tokenizer(words, 520)


@pytest.fixture(scope="session")
def data():
    """Nine users with 4 to 12 of fifteen items each; indexes of three and of four digits."""
    rng = np.random.default_rng(0)
    sequences = [rng.permutation(ITEMS)[:n] for n in (7, 4, 12, 5, 9, 4, 8, 6, 10)]
    return Dataset(
        name="Toy",
        users=[f"u{i}" for i in range(USERS)],
        items=[f"i{i}" for i in range(ITEMS)],
        sequences=np.concatenate(sequences).astype(np.int32),
        offsets=np.cumsum([0, *map(len, sequences)]),
        user_index=np.arange(USERS) + 1,
        item_index=np.arange(ITEMS) * 97 + 301,
        texts=[{"title": f"Film {i}"} for i in range(ITEMS)],
        notes={},
        checksums={},
    )


@pytest.fixture(scope="session")
def tasks(data):
    return RecommendationTasks(data, OUR_TEMPLATES, Indexing("Toy", data.user_index, data.item_index), history_max=4)


@pytest.fixture(scope="session")
def new_ilm(tokenizer, tasks):
    """new_ilm("qformer", llm="gpt2", tokens=3): an ILM with random weights; "none" is the bare LLM."""

    def make(encoder, llm="llama", tokens=3, seed=0):
        model = tiny_llm(llm, len(tokenizer), seed=seed, bos=tokenizer.bos_token_id, eos=tokenizer.eos_token_id)
        torch.manual_seed(seed + 1)
        cf = torch.randn(ITEMS + USERS, CF)
        made = {
            "none": lambda: None,
            "mlp": lambda: MLPEncoder(CF, 32, tokens),
            "qformer": lambda: QFormerEncoder(tiny_qformer(num_query_tokens=tokens, seed=seed).qformer, 32),
        }[encoder]()
        if made is not None:
            made.calibrate(cf, 0.3)
        return ILM(model, tokenizer, made, cf, ITEMS, tasks.catalogue()).eval()

    return make


@pytest.fixture(scope="session")
def new_talker(new_ilm):
    """new_talker("gpt2", titles=False, ...): an ILM that reads dialogues, of random weights."""

    def make(llm="llama", *, encoder="mlp", side={"layers": 1, "heads": 2}, likeness=None, seed=0, **prompt):
        bare = new_ilm(encoder, llm, seed=seed)
        torch.manual_seed(seed)
        states = bare.llm.config.get_text_config().num_hidden_layers + 1
        shown = DialoguePrompt(**{"history_max": 12, "system": "You recommend films."} | prompt)
        head = ScoreHead(32, CF, ITEMS, states=states, side=side, dim=8, prompt=shown, likeness=likeness)
        torch.nn.init.normal_(head.bias)
        return ILM(bare.llm, bare.tokenizer, bare.encoder, bare.cf, ITEMS, bare.catalogue, "slot", FOLD, head).eval()

    return make


def row(**changes) -> dict:
    """A row of results.csv; its read-out, where it is not given, is the one that goes with method and metric."""
    base = ("table3", "ML1M", "both", "seen", "kept", "", "ILM", "", 0, "HR@10", 0.1, 100)
    out = dict(zip(RESULT_COLUMNS, base, strict=True)) | changes
    llm = out["method"] in METHODS and METHODS[out["method"]].encoder is not None
    return out | ({"readout": "beam"} if llm and "@" in out["metric"] and "readout" not in changes else {})


def frame(*rows: dict) -> pd.DataFrame:
    return pd.DataFrame(rows or [row()])
