"""Data at scale: the start with ML1M (h), and 100 million interactions from the text file to a first batch (i)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bench.harness import Row, at_most, openp5_folder, resident_peak
from ilm_lib.baselines.cf import fit_cf
from ilm_lib.data import Dataset, load_openp5
from ilm_lib.data.templates import OUR_TEMPLATES
from ilm_lib.model.indexing import Indexing
from ilm_lib.model.prompts import Batch, PromptEncoder
from ilm_lib.model.tokenizer import train_tokenizer
from ilm_lib.profiles import ROOT
from ilm_lib.tasks.openp5 import RecommendationTasks

ITEMS, MEAN_LENGTH, SAMPLE = 200_000, 100, 20_000
BYTES_PER_INTERACTION = 20  # on disk: the text, the codes and the rows, with room to spare


def run(interactions: int = 100_000_000) -> list[Row]:
    """Rows of h and i, each with its peak memory; what cannot run here is left out and the reason printed."""
    rows = []
    ml1m = openp5_folder() / "ML1M"
    if ml1m.is_dir():
        seconds, mebibytes = measure("start", ml1m)
        rows += [
            at_most("h ML1M dataset start", seconds, 5, "s"),
            at_most("h peak memory of the process", mebibytes, 1024, "MiB", main=False),
        ]
    else:
        print(f"h is left out: {ml1m} is not there; set ILM_DATA_DIR")
    with TemporaryDirectory() as folder:
        needed = interactions * BYTES_PER_INTERACTION
        if shutil.disk_usage(folder).free > needed:
            synthesise(Path(folder), interactions)
            seconds, mebibytes = measure("first_batch", Path(folder))
            rows += [
                at_most(f"i {interactions / 1e6:g} M interactions: load and first batch", seconds, 120, "s"),
                at_most("i peak memory of the process", mebibytes, 4096, "MiB", main=False),
            ]
        else:
            print(f"i is left out: {folder} needs {needed / 1e9:.1f} GB of disk; set TMPDIR")
    return rows


def synthesise(folder: Path, interactions: int, *, seed: int = 0, users_a_block: int = 20_000) -> None:
    """Write user_sequence.txt: lengths that vary about 100, items by Zipf's law."""
    rng = np.random.default_rng(seed)
    users = interactions // MEAN_LENGTH
    share = rng.gamma(2, size=users)
    lengths = 4 + rng.multinomial(interactions - 4 * users, share / share.sum())
    names = pa.array(rng.permutation(ITEMS)).cast(pa.string())
    with open(folder / "user_sequence.txt", "w", encoding="utf-8") as file:
        for start in range(0, users, users_a_block):
            offsets = np.concatenate([[0], np.cumsum(lengths[start : start + users_a_block])])
            rank = (ITEMS ** rng.random(offsets[-1])).astype(np.int64) - 1  # log-uniform: chances fall as 1 / rank
            items = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), names.take(pa.array(rank)))
            user = pa.array(np.arange(start, start + len(items))).cast(pa.string())
            lines = pc.binary_join_element_wise(user, pc.binary_join(items, " "), " ")
            file.write("\n".join(lines.to_pylist()) + "\n")


def start(folder: Path, cache: Path) -> None:
    """From the files to the first training prompts."""
    recommendation_tasks(load_openp5(folder, cache=cache)).draw(np.random.default_rng(0), 32)


def first_batch(folder: Path, cache: Path) -> Batch:
    """From the file over splits and the embeddings of a sample of users to the first training batch."""
    dataset = load_openp5(folder, cache=cache)
    assert len(dataset.dev_targets()) == len(dataset.test_targets()) == dataset.num_users
    users = np.random.default_rng(0).choice(dataset.num_users, min(SAMPLE, dataset.num_users), replace=False)
    cf = fit_cf(dataset.train_matrix(users), dim=16, iterations=2, threads=os.cpu_count() or 1)
    assert cf.user.shape == (len(users), 16) and cf.item.shape == (dataset.num_items, 16)
    tokenizer = train_tokenizer([t.source for t in OUR_TEMPLATES], 520)
    encoder = PromptEncoder(tokenizer, dataset.num_items, num_query_tokens=4)
    return recommendation_tasks(dataset).training_batches(encoder, 32, "target", seed=0)(0)


def recommendation_tasks(dataset: Dataset) -> RecommendationTasks:
    indexing = Indexing(dataset.name, dataset.user_index, dataset.item_index)
    return RecommendationTasks(dataset, OUR_TEMPLATES, indexing, history_max=20)


def measure(function: str, folder: Path) -> tuple[float, float]:
    """Seconds, imports left out, and peak MiB, all of the process, of a function of this file in its own process."""
    command = [sys.executable, "-m", "bench.data", function, str(folder.resolve())]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout
    seconds, mebibytes = map(float, out.split()[-2:])
    return seconds, mebibytes


if __name__ == "__main__":
    with TemporaryDirectory() as cache:
        started = time.perf_counter()
        {"start": start, "first_batch": first_batch}[sys.argv[1]](Path(sys.argv[2]), Path(cache))
        print(time.perf_counter() - started, resident_peak())
