"""What a catalogue costs as it grows: a step of training, a top ten and the trie of all names, on random items.

python -m bench.catalogue                       10^4 to 10^7 items, into runs/speed/catalogue.csv
python -m bench.catalogue step 1000000          one of them, as JSON

Each is measured in a process of its own, whose peak of memory is its own as well.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch

from bench.harness import milliseconds, resident_peak
from ilm_lib.files import write_text
from ilm_lib.model.kernels import Trie
from ilm_lib.model.scoring import ScoreHead, top_items
from ilm_lib.profiles import ROOT, runs_dir

SIZES = tuple(10**power for power in (4, 5, 6, 7))
DIM, PLACES, NEGATIVES, USERS, REPEATS = 64, 2048, 512, 64, 3


@dataclass(frozen=True)
class Cost:
    """What one piece of work takes.

    Attributes:
        what: a key of `WORK`.
        seconds: the median of `REPEATS`.
        gib: the peak of the process, less what it had before any item was there.
    """

    what: str
    items: int
    seconds: float
    gib: float


def step(items: int) -> Callable[[], object]:
    """A step of the score read-out, sampled softmax: head, table with a learned part of every item, AdamW."""
    vectors = torch.randn(items, DIM)
    head = ScoreHead(DIM, DIM, items, dim=DIM)
    optimizer = torch.optim.AdamW(head.parameters(), fused=True)
    states, targets = torch.randn(PLACES, DIM), torch.randint(items, (PLACES,))

    def once() -> None:
        head.loss(states, vectors, targets, NEGATIVES).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return once


def top_ten(items: int) -> Callable[[], object]:
    """The first ten of all items for `USERS` users, what each had left out."""
    table, bias, queries = torch.randn(items, DIM), torch.randn(items), torch.randn(USERS, DIM)
    had = torch.randint(items, (USERS, 50)).tolist()
    return lambda: top_items(queries, table, bias, 10, had)


def trie(items: int) -> Callable[[], object]:
    """The tree of all names, two digits a token behind three that all share, as our LLM reads them."""
    digits = len(str(items - 1)) + len(str(items - 1)) % 2
    pairs = [np.arange(items) // 100**place % 100 for place in reversed(range(digits // 2))]
    names = np.stack([*(np.full(items, 100 + n) for n in range(3)), *pairs, np.full(items, 103)], 1)
    return lambda: Trie.build(names)


WORK = {"step": step, "top ten": top_ten, "trie": trie}
LABELS = {"step": "a step of training", "top ten": f"top ten of {USERS} users", "trie": "the trie of all names"}


def measure(what: str, items: int) -> Cost:
    torch.manual_seed(0)
    before = resident_peak()
    work = WORK[what](items)
    work()
    seconds = statistics.median(milliseconds(work) for _ in range(REPEATS)) / 1e3
    return Cost(what, items, seconds, (resident_peak() - before) / 1024)


def slope(costs: pd.DataFrame, value: str = "seconds") -> dict[str, float]:
    """Of each work the exponent p of `value` ~ items^p, over the last two powers of ten; 1 is linear."""
    largest = costs.sort_values("items").groupby("what").tail(3)
    fit = lambda rows: float(np.polyfit(np.log(rows["items"]), np.log(rows[value].clip(lower=1e-3)), 1)[0])
    return {str(what): fit(rows) for what, rows in largest.groupby("what")}


def main(arguments: list[str]) -> None:
    if arguments:
        what, items = arguments
        print(json.dumps(asdict(measure(what, int(items)))))
        return
    path, found = runs_dir() / "speed" / "catalogue.csv", []
    path.parent.mkdir(parents=True, exist_ok=True)
    for what in WORK:
        for items in SIZES:
            command = [sys.executable, "-m", "bench.catalogue", what, str(items)]
            said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
            found.append(json.loads(said.splitlines()[-1]))
            print(found[-1], flush=True)
            write_text(path, pd.DataFrame(found).to_csv(index=False, float_format="%.4g"))
    print(slope(pd.DataFrame(found)))


if __name__ == "__main__":
    main(sys.argv[1:])
