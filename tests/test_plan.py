"""What a plan says is held against models that are built, FLOPs that are counted and memory that is measured."""

import os
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ilm_lib import plan as plans
from ilm_lib.costs import Load, count, count_bare, memory, phase1_flops, query_flops
from ilm_lib.model.prompts import PromptEncoder
from ilm_lib.model.qformer import QFormer
from ilm_lib.paper import HYPERPARAMETERS_ELM24, HYPERPARAMETERS_OPENP5
from ilm_lib.profiles import ROOT, load_params
from ilm_lib.settings import ParamsError, QFormerParams
from ilm_lib.trainings import Trainings, full_histories, new_llm, new_qformer, phase1_batch, prompts

PAPER = {"paper-ml1m": "ML1M", "paper-beauty": "Beauty", "paper-clothing": "Clothing", "paper-elm24": None}
SMALL = {
    **{
        "qformer.layers": 3,
        "qformer.width": 32,
        "qformer.heads": 2,
        "qformer.inner": 48,
        "qformer.max_text_tokens": 20,
    },
    **{"qformer.num_query_tokens": 3, "phase1.batch_size": 6, "backbone.layers": 2, "backbone.width": 48},
    **{"backbone.heads": 4, "backbone.inner": 80, "phase2.batch_size": 3, "backbone.batch_size": 3},
}


@pytest.fixture(autouse=True)
def no_data(tmp_path, monkeypatch):
    monkeypatch.setenv("ILM_DATA_DIR", str(tmp_path))


@pytest.mark.parametrize("profile, dataset", PAPER.items())
def test_the_papers_profiles_have_its_sizes_and_rates(profile, dataset):
    """Counted are all weights but embeddings of tokens and of places, and the output layer that is one with them."""
    params = load_params(profile)
    with torch.device("meta"):
        qformer, llm = new_qformer(params), new_llm(params, vocab=1000)
    assert count_bare(qformer) == pytest.approx(168e6, rel=0.02) and count_bare(llm) == pytest.approx(128e6, rel=0.02)
    layers = [w for n, w in qformer.named_parameters() if w.dim() == 2 and ("layers" in n or "text_ffn" in n)]
    assert sum(w.numel() for w in layers) == 167_772_160
    assert count(qformer) - count_bare(qformer) == (8000 + params.qformer.max_text_tokens) * 1024

    said = HYPERPARAMETERS_OPENP5 if dataset else HYPERPARAMETERS_ELM24
    steps = lambda phase: said[phase]["steps"][dataset] if dataset else said[phase]["steps"]
    own = (params.phase1.steps, params.phase2.steps)
    own = own if dataset else (params.elm24.phase1_steps, params.elm24.phase2_steps)
    assert own == (steps("phase1"), steps("phase2")) and params.qformer.layers == params.backbone.layers == 8
    for phase in ("phase1", "phase2"):
        mine = getattr(params, phase)
        assert {"batch_size": mine.batch_size, "learning_rate": mine.lr, "schedule": mine.schedule} == {
            key: said[phase][key] for key in ("batch_size", "learning_rate", "schedule")
        }
        assert (mine.optimizer, mine.relative, mine.accumulate) == ("adafactor", False, 1)
    if dataset:
        assert params.backbone.steps == said["pretrain"]["steps"][dataset]


def test_inner_widths_are_given_or_follow_from_the_width():
    params = load_params("toy")
    with torch.device("meta"):
        old = count(new_qformer(params)), count(new_llm(params, 1000))
        wide = params.with_(**{"qformer.inner": 4 * 64, "backbone.inner": 2 * 128})
        assert (count(new_qformer(wide)), count(new_llm(wide, 1000))) == old
        wider = params.with_(**{"qformer.inner": 4 * 64 + 1, "backbone.inner": 2 * 128 + 1})
        more = count(new_qformer(wider)) - old[0], count(new_llm(wider, 1000)) - old[1]
    assert more == (2 * 2 * (2 * 64 + 1), 2 * 3 * 128)
    with pytest.raises(ParamsError, match=r"qformer\.inner is that of the checkpoint"):
        params.with_(**{"qformer.text_tower": "minilm", "qformer.inner": 100})
    with pytest.raises(ParamsError, match="phase1.*relative: false is read with optimizer: adafactor alone"):
        params.with_(**{"phase1.relative": False})


# ---------------------------------------------------------------- FLOPs


def counted(call) -> int:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # in which attention is two products
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("sizes", [{}, {"cf_keys": 3}, {"cross_attention_frequency": 3, "num_query_tokens": 1}])
def test_flops_of_the_query_tower(sizes):
    params = QFormerParams(**{"layers": 4, "width": 32, "heads": 2, "inner": 50, "num_query_tokens": 4, **sizes})
    qformer = QFormer(params, 16)
    assert query_flops(qformer, 9) == pytest.approx(counted(lambda: qformer.queries(torch.randn(9, 16))), rel=0.01)


@pytest.mark.parametrize("wanted", [("itc", "itg", "itm", "ui"), ("itc", "itm"), ("itg",), ("itc",), ("ii", "ui")])
@pytest.mark.parametrize("layers", [2, 3])
def test_flops_of_phase_1(wanted, layers):
    params = load_params("toy", **SMALL | {"qformer.layers": layers})
    model, losses = Trainings(params, *prompts(params)[:1], "cpu")._align("", params, wanted).make()[0], 0
    texts = {"itc", "itg", "itm"} & {*wanted}
    kinds = ([tuple(texts)] if texts else []) + [(k,) for k in ("ii", "ui") if k in wanted]
    for kind in kinds:
        batch = phase1_batch(6, 20, params.embeddings.dim, kind)
        batch = {
            k: torch.randn_like(v) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in batch.items()
        }
        losses += counted(lambda batch=batch: sum(model(batch).values()).backward())
    assert phase1_flops(model.model, 6, 20, wanted) == pytest.approx(losses / len(kinds), rel=0.03)


@pytest.mark.parametrize("stage", ["backbone", "phase2"])
def test_flops_of_the_llm_trained_and_frozen(stage, monkeypatch):
    """Prompts of like length, one a row and none packed: what is computed is what a plan counts."""
    params = load_params("toy", **SMALL)
    tasks = prompts(params)[0]
    monkeypatch.setattr("ilm_lib.trainings.DRAWN", 1)

    def alone(self, encoder, size, loss_on, seed):
        ((prompt, answer),) = self.draw(np.random.default_rng(0), 1)
        return lambda number: encoder.batch([prompt] * size, answers=[answer] * size, loss_on=loss_on)

    monkeypatch.setattr(type(tasks), "training_batches", alone)
    training = getattr(Trainings(params, tasks, "cpu"), stage)()
    model = training.make()[0]
    found = counted(lambda: sum(training.loss(model, training.batch).values()).backward())
    assert training.flops == pytest.approx(found, rel=0.05)


def test_a_load_counts_prompts_and_no_padding(tasks, tokenizer):
    encoder, drawn = PromptEncoder(tokenizer, tasks.data.num_items, 2), tasks.draw(np.random.default_rng(0), 12)
    asked, answers = zip(*drawn)
    lengths = [
        len(encoder.encode(prompt)[0]) + len(encoder.answer_ids(answer)) for prompt, answer in zip(asked, answers)
    ]
    for pack in (False, True):
        batch = encoder.batch(asked, answers=answers, pack=pack)
        start = 0 if batch.start is None else len(batch.start)
        own = [n - start for n in lengths]
        assert Load.of(batch) == Load(
            sum(own) + start, sum(n * (n + start) for n in own) + start**2, batch.weight, len(batch.entities)
        )


# ---------------------------------------------------------------- memory


def test_memory_of_a_layer_by_hand():
    """Two linear layers of 1,000 with 500 rows, whose gradients take 8 MB and what is in between 2 MB each."""
    layers = lambda: nn.Sequential(nn.Linear(1000, 1000, bias=False), nn.ReLU(), nn.Linear(1000, 1000, bias=False))
    make = lambda: ((model := layers()), list(model.parameters()))
    loss = lambda m, b: {"loss": m(b["x"]).sum()}
    optim = load_params("toy").phase2.model_copy(update={"precision": "float32"})
    found = memory(make, loss, {"x": torch.zeros(500, 1000)}, optim)
    assert (found.weights, found.gradients, found.optimizer) == (8_000_000, 8_000_000, 2 * 8_000)
    assert 8e6 + 4e6 < found.activations < 8e6 + 12e6
    step = 8_000_000 + 8_000_000  # gradients, and updates of all weights
    assert found.peak == 8_000_000 + 16_000 + max(found.activations, step)
    adamw = memory(make, loss, {"x": torch.zeros(500, 1000)}, optim.model_copy(update={"optimizer": "adamw"}))
    assert (adamw.optimizer, adamw.peak) == (16_000_000, 24_000_000 + adamw.activations)
    best = memory(make, loss, {"x": torch.zeros(500, 1000)}, optim, keep_best=True)
    assert best.peak - found.peak == best.optimizer - found.optimizer == 8_000_000


MEASURE = """
import sys
from bench.harness import resident_peak
from tests.test_plan import reduced, trained
training = reduced(sys.argv[1])
before = resident_peak()
trained(training)
print(resident_peak() - before)
"""


def reduced(stage):
    """A training of paper-beauty at an eighth of its width, small batches, and float32: the machine has to have it."""
    params = load_params("paper-beauty", **{
        "qformer.width": 128, "qformer.heads": 4, "qformer.inner": 480, "phase1.batch_size": 16,
        "backbone.width": 256, "backbone.heads": 4, "backbone.inner": 960,
        "backbone.batch_size": 16, "phase2.batch_size": 8,
        "phase1.precision": "float32", "phase2.precision": "float32", "backbone.precision": "float32",
        "phase1.steps": 2, "phase2.steps": 2, "backbone.steps": 2,
    })  # fmt: skip
    return getattr(Trainings(params, prompts(params)[0], "cpu"), stage)()


def trained(training):
    """Two steps of `fit`: in the second the optimizer's state is there."""
    from pathlib import Path

    from ilm_lib.train.loop import fit

    model, parameters = training.make()
    state = Path("no-state-is-written.safetensors")
    fit(model, parameters, training.loss, lambda n: training.batch, training.optim, seed=0, eval_every=9, state=state)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["backbone", "phase1", "phase2"])
def test_memory_is_what_a_training_takes(stage):
    """In a process of its own, above what it has before. Its heap gives back at once what is freed, as the pages that a
    heap holds for later are nothing that a training needs: left to itself it grows by half in the LLM's trainings."""
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, "-c", MEASURE, stage]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    measured, t = float(done.stdout.split()[-1]), reduced(stage)
    planned = memory(t.make, t.loss, t.batch, t.optim, target="cpu").peak / 2**20
    assert measured > 100 and planned == pytest.approx(measured, rel=0.15)


# ---------------------------------------------------------------- the command


def test_what_a_plan_says(capsys):
    assert plans.main(["--profile", "toy", "--memory", "1"]) == 0
    said = capsys.readouterr().out
    for words in ("LLM", "phase 1", "phase 2", "ELM phase 2", "evaluation", "h H100", "h 16 TPU v5e", "GiB of 1: fits"):
        assert words in said
    assert plans.hours(989e12 * 3600, "H100", 0.5) == 2 and plans.hours(16 * 197e12 * 3600, "16 TPU v5e", 1) == 1
    assert plans.main(["--profile", "toyy"]) == 1 and "Did you mean 'toy'" in capsys.readouterr().err
    assert plans.main(["--memory", "many"]) == 2 and "no whole number" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("profile", sorted(p.stem for p in (ROOT / "params").glob("*.yaml")))
def test_every_profile_has_a_plan(profile, monkeypatch):
    params = load_params(profile)
    monkeypatch.setattr("ilm_lib.trainings.DRAWN", 1)
    found = plans.plan(params.with_(**{"qformer.layers": 1, "backbone.layers": 1}))
    assert found.stages and found.peak > 0 and "not planned" in found.notes[-1]
    for stage in found.stages:
        assert stage.flops > 0 and (stage.memory is None or min(asdict(stage.memory).values()) > 0)
        assert stage.memory is None or stage.memory.peak >= stage.memory.weights + stage.memory.optimizer


def test_an_llm_that_is_not_at_hand_is_named(tmp_path):
    params = load_params("toy", **{"backbone.pretrained": str(tmp_path / "none")})
    with pytest.raises(plans.Refusal, match=r"backbone\.pretrained .*none: its sizes cannot be read"):
        new_llm(params, 0)
    with torch.device("meta"):
        llm = new_llm(load_params("redial"), 0)
    assert count(llm) == 134_515_008  # SmolLM2-135M-Instruct, fetched or not


def test_made_up_histories_are_full():
    data = full_histories("Toy", 5, 40, 10)
    assert (data.num_users, data.num_items) == (5, 40) and all(len(data.history(u, "dev")) > 10 for u in range(5))
