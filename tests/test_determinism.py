"""What comes out equal when a study is run again, and how far it may move on another number of threads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent

# All stages of one method with few steps; prints the digests of what they leave and some of what the model says.
_STUDY = """
import json, os, torch
from ilm_lib import Item, User, load_params
from ilm_lib.study import inputs, stages
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
loop = {"steps": 12, "batch_size": 16}
params = load_params("toy", data={"source": "toy", "num_items": 90, "num_users": 80, "history_max": 6},
    phase1=loop, backbone=loop, phase2={**loop, "eval_every": 6, "dev_users": 20},
    **{"embeddings.dim": 16, "qformer.text_vocab": 500})
made = [inputs.data(params, build=True), inputs.embeddings(params, 0, build=True)]
made += [stages.phase1(params, 0, "ILM", build=True), stages.backbone(params, 0, build=True)]
made += [stages.phase2(params, 0, "ILM", build=True)]
ilm = stages.load_ilm(params, 0, "ILM")
said = [ilm.recommend(user=User(u), history=[Item(u), Item(u + 1)]) for u in range(8)]
ilm.save_pretrained(os.environ["ILM_RUNS_DIR"] + "/model")
print(json.dumps({"digests": [a.identity() for a in made], "scores": [[r.log_probability for r in s] for s in said],
    "vectors": inputs.scaled_cf(made[1]).tolist()}))
"""


def study(folder: Path, *, threads: int = 1, **env: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", _STUDY],
        env=os.environ | {"PYTHONPATH": str(ROOT), "ILM_RUNS_DIR": str(folder), "OMP_NUM_THREADS": str(threads)} | env,
        cwd=folder.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    return study(tmp_path_factory.mktemp("first") / "runs")


@pytest.mark.slow
def test_equal_seeds_give_equal_bytes_whatever_surrounds_them(once, tmp_path):
    """Another folder, hash seed, time zone, locale and home: every file of every stage is the same."""
    other = {"PYTHONHASHSEED": "7", "TZ": "Pacific/Chatham", "LC_ALL": "C", "HOME": str(tmp_path), "USER": "someone"}
    assert study(tmp_path / "Ж runs", **other) == once


@pytest.mark.slow
def test_two_threads_move_what_the_model_says_by_rounding_alone(once, tmp_path):
    """Sums in another order, in bfloat16 where the processor has it: the nats of the ten recommended moved by 6e-5."""
    both = study(tmp_path / "runs", threads=2)
    assert both["digests"][0] == once["digests"][0]
    np.testing.assert_allclose(both["vectors"], once["vectors"], atol=1e-5)
    np.testing.assert_allclose(both["scores"], once["scores"], rtol=1e-3)
