"""Our metrics and our SASRec beside RecTools', on ML100K with the same split.

    python3 -m venv DIR && DIR/bin/pip install 'rectools[torch]'
    RECTOOLS_PYTHON=DIR/bin/python ILM_DATA_DIR=... python -m bench.rectools_check [seeds]

RecTools is measured in an environment of its own, see `rectools_side`. Their SASRec reads as many items, is as large,
drops as much, draws batches as large and sees every user as often as ours in params/ml100k.yaml; their learning rate,
constant, is the one they recommend. Both keep the weights with the best NDCG@10 on the dev items.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bench.harness import openp5_folder
from ilm_lib import load_params
from ilm_lib.baselines.sasrec import sasrec_top_k, train_sasrec
from ilm_lib.data import Dataset, load_openp5
from ilm_lib.errors import Refusal
from ilm_lib.metrics import hits_at, mean_se, ndcg_at
from ilm_lib.settings import SASRec

VARIABLE = "RECTOOLS_PYTHON"
ROUNDS = 10  # evaluations on dev, as often as ours


class NoRecTools(Refusal, ModuleNotFoundError):
    """The interpreter that was named has no RecTools."""


def interpreter() -> str:
    """The Python that has RecTools: that of the variable, else this one.

    Raises:
        NoRecTools: it has none.
    """
    python = os.environ.get(VARIABLE) or sys.executable
    try:
        subprocess.run([python, "-c", "import rectools.models.nn.transformers.sasrec"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        raise NoRecTools(
            f"RecTools is missing in {python[:80]}. Give it an environment of its own (python3 -m venv DIR, then "
            f"DIR/bin/pip install 'rectools[torch]') and set {VARIABLE}=DIR/bin/python"
        ) from None
    return python


def ask(python: str, **given: np.ndarray) -> dict[str, np.ndarray]:
    """What `rectools_side` finds for arrays `top` (U, 10) and `target` (U,); with `settings`, for a dataset as well."""
    side = Path(__file__).with_name("rectools_side.py")
    with TemporaryDirectory() as name:
        there, back = Path(name) / "given.npz", Path(name) / "found.npz"
        np.savez(there, **given)
        subprocess.run([python, str(side), str(there), str(back)], check=True, stdout=subprocess.DEVNULL)
        with np.load(back, allow_pickle=False) as found:
            return dict(found)


def like_settings(params: SASRec, data: Dataset, seeds: list[int]) -> dict:
    """What their SASRec is asked for, in their words."""
    epochs = params.steps * params.batch_size / data.num_users
    model = {
        "n_blocks": params.layers,
        "n_heads": params.heads,
        "n_factors": params.width,
        "dropout_rate": params.dropout,
        "session_max_len": params.max_length,
        "batch_size": params.batch_size,
        "loss": "softmax",
        "lr": 1e-3,
    }
    return {"model": model, "rounds": ROUNDS, "epochs": max(1, round(epochs / ROUNDS)), "seeds": seeds}


def main(seeds: list[int]) -> None:
    """Print both SASRecs' HR@10 and NDCG@10 on test, history excluded, and how far the metrics are apart."""
    python = interpreter()
    data, params = load_openp5(openp5_folder() / "ML100K", name="ML100K"), load_params("ml100k").sasrec
    target, everyone = data.test_targets(), np.arange(data.num_users)
    ours = {}
    for seed in seeds:
        model, _ = train_sasrec(data, params, seed=seed)
        ours[seed] = sasrec_top_k(model, data, "test", 10, exclude=True, users=everyone)
    settings = np.array(json.dumps(like_settings(params, data, seeds)))
    found = ask(
        python, top=ours[seeds[0]], target=target, sequences=data.sequences, offsets=data.offsets, settings=settings
    )
    print(f"ML100K, {data.num_users} users, test, history excluded, seeds {seeds}: mean ± standard error over users")
    for name, tops in (("ours", ours), ("RecTools", {seed: found[f"top.{seed}"] for seed in seeds})):
        print(f"  {name:9}", *(f"{metric} {_figure(measure, tops, target)}" for metric, measure in METRICS.items()))
    apart = [np.abs(found[key] - measure(ours[seeds[0]], target, 10)).max() for key, measure in KEYS.items()]
    print(f"  the same ranking by both sides' metrics: HR@10 {apart[0]:.1e}, NDCG@10 {apart[1]:.1e} apart at most")


METRICS = {"HR@10": hits_at, "NDCG@10": ndcg_at}
KEYS = {"hits": hits_at, "ndcg": ndcg_at}


def _figure(measure, tops: dict[int, np.ndarray], target: np.ndarray) -> str:
    values = [measure(top, target, 10) for top in tops.values()]
    mean, error = mean_se(np.mean(values, axis=0))  # a user's mean over the seeds
    return f"{mean:.4f} ± {error:.4f} ({', '.join(f'{value.mean():.4f}' for value in values)})"


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or [0, 1, 2])
