"""Several processes together do what one does alone: the same losses, the same rows, also after one was killed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_llm
from rough.together import SHORT, spelled
from test_paper_run import TINY, left

from bench import paper_run
from ilm_lib import processes
from ilm_lib.model.backbone import weights_fingerprint
from ilm_lib.model.history import HistoryPrompt
from ilm_lib.settings import Phase2
from ilm_lib.tasks.scoring import ScoringTasks
from ilm_lib.train.loop import fit
from ilm_lib.train.phase2 import answer_loss

ODD = """
phase1: {steps: 50, batch_size: 9, lr: 1.0e-3, losses: [itc, itg, itm, ii, ui]}
backbone: {layers: 2, width: 32, heads: 2, inner: 48, vocab: 450, steps: 50, batch_size: 5}
phase2: {steps: 50, batch_size: 5, eval_every: 10, dev_users: 11}
evaluation: {max_users: 31}
"""


def scoring_of(ilm, data):
    """The histories of a dataset for the score read-out, and what makes batches of them."""
    return ScoringTasks(data, ilm.catalogue, ilm.cf, HistoryPrompt(history_max=5)), ilm.prompts


TOGETHER = Path(__file__).parent / "rough" / "together.py"


def launch(*arguments: str, count: int = 2, runs: Path | None = None) -> subprocess.CompletedProcess:
    """`together.py`, in so many processes."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "ILM_RUNS_DIR": str(runs or "")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    return subprocess.run([*command, str(TOGETHER), *arguments], env=env, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_two_processes_make_the_row_of_one(tmp_path, monkeypatch, capsys):
    """Batches that two cannot halve; after process 1 is killed, what was done up to the last evaluation is kept."""
    profile = tmp_path / "tiny.yaml"
    lines = [
        line for line in TINY.splitlines() if line.split(":")[0] not in ("phase1", "backbone", "phase2", "evaluation")
    ]
    profile.write_text("\n".join(lines) + ODD, encoding="utf-8")
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path / "one"))
    monkeypatch.setenv("ILM_PROGRESS", str(tmp_path / "progress"))
    assert paper_run.main(["--profile", str(profile)]) == 0
    (one, logs, ranked), said = left(), capsys.readouterr().out

    killed = launch("row", "27", "--profile", str(profile), runs=tmp_path / "two")
    assert killed.returncode != 0 and "ours" not in killed.stdout
    (tmp_path / "progress").unlink()
    done = launch("row", "0", "--profile", str(profile), runs=tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert "phase 2: goes on after step 20" in (tmp_path / "progress").read_text(encoding="utf-8")
    assert done.stdout.count("both tasks together") == said.count("both tasks together") == 1, "one says it for both"

    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path / "two"))
    two, logs_of_two, ranked_by_two = left()
    assert two["row"] == one["row"] and ranked_by_two == ranked
    assert set(logs) == set(logs_of_two) == {"phase1", "backbone", "phase2"}
    for name, log in logs.items():
        pd.testing.assert_frame_equal(log, logs_of_two[name], check_exact=False, atol=1e-4, rtol=0)
        assert log["value"].nunique() > 5


@pytest.mark.slow
def test_two_processes_rank_with_an_llm_that_neither_has_whole(tmp_path, monkeypatch, tokenizer, capsys):
    tiny_llm("llama", len(tokenizer)).save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    monkeypatch.setenv("ILM_PROGRESS", str(tmp_path / "progress"))
    shared = "".join(f"{line}\n" for line in TINY.splitlines() if not line.startswith("backbone:"))
    rows = {}
    for name, kept in (("one", ""), ("two", ", sharded: true, recompute: true")):
        profile = tmp_path / name / "tiny.yaml"
        profile.parent.mkdir()
        profile.write_text(shared + f"backbone: {{pretrained: {tmp_path / 'llm'}{kept}}}\n", encoding="utf-8")
        monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path / name))
        if name == "one":
            assert paper_run.main(["--profile", str(profile)]) == 0
        else:
            run = launch("row", "0", "--profile", str(profile), runs=tmp_path / name)
            assert run.returncode == 0, run.stderr
        report, logs, ranked = left()
        rows[name] = report["row"], ranked
        losses = logs["phase2"].query("split == 'train'")["value"].to_numpy()
        rows[name] += (losses,)
    assert rows["two"][:2] == rows["one"][:2]
    np.testing.assert_allclose(rows["two"][2], rows["one"][2], atol=1e-4)


@pytest.mark.slow
def test_layers_spread_over_processes_are_the_same_llm(tmp_path):
    assert (run := launch("layers", str(tmp_path / "log.parquet"))).returncode == 0, run.stderr
    ilm, batches = spelled()
    before = weights_fingerprint(ilm.llm)
    alone = fit(ilm, [*ilm.encoder.parameters()], answer_loss, batches, Phase2(**SHORT), seed=0, eval_every=10)
    together = pd.read_parquet(tmp_path / "log.parquet")
    assert set(together.pop("fingerprint")) == {before}
    whole = sum(p.numel() for p in ilm.llm.parameters())
    layers = sum(p.numel() for p in ilm.llm.model.layers.parameters())
    assert set(together.pop("held")) == {whole - layers // 2}
    pd.testing.assert_frame_equal(alone, together, check_exact=False, atol=1e-4, rtol=0)
    assert alone["value"].iloc[-1] < 0.9 * alone["value"].iloc[0], "it learns"


# ---------------------------------------------------------------- parts


@pytest.fixture
def second_of_three(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 3)
    monkeypatch.setattr(processes, "number", lambda: 1)


def test_every_row_is_somebodys(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 3)
    parts = []
    for number in range(3):
        monkeypatch.setattr(processes, "number", lambda number=number: number)
        parts.append(processes.own(np.arange(8)))
    assert [part.tolist() for part in parts] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    means = [processes.share(len(part), 8) * part.mean() for part in parts]
    assert np.isclose(np.mean(means), np.arange(8).mean())


def test_each_history_of_a_batch_is_read_by_one_process(new_ilm, data, monkeypatch):
    tasks, encoder = scoring_of(new_ilm("mlp"), data)
    rows = lambda batch: batch.targets.tolist()
    whole = rows(tasks.training_batches(encoder, 7, seed=0)(3))
    monkeypatch.setattr(processes, "count", lambda: 2)
    parts = []
    for number in (0, 1):
        monkeypatch.setattr(processes, "number", lambda number=number: number)
        parts += rows(tasks.training_batches(encoder, 7, seed=0)(3))
    assert len(whole) > 7 and sorted(parts) == sorted(whole)


def test_a_batch_too_small_to_share_says_so(second_of_three):
    assert processes.own([1, 2, 3]) == [2]
    with pytest.raises(processes.TooManyProcesses, match="a batch of 2 cannot be shared by 3 processes: start fewer"):
        processes.own([1, 2])


def test_alone_nothing_is_changed():
    x = torch.randn(3, 2, requires_grad=True)
    assert processes.everybody(x, 3) is x and processes.own([4, 5]) == [4, 5] and processes.share(2, 2) == 1
    assert processes.total(2.5) == 2.5 and processes.agreed(lambda: "mine") == "mine"
    gradients = [torch.ones(2)]
    processes.add_up(gradients)
    assert gradients[0].tolist() == [1, 1]
