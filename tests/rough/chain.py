"""A whole study in this process, in seconds: the code cells of the notebooks, one after another, at a few steps.

study = Chain(tmp_path, sequences=[[0, 1, 2, 3], ...], texts=[{"title": "A"}, ...], methods=["MLP"])
study.run()          # the notebooks that the grid would run, in its order
study.results()      # results.csv
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib
import pandas as pd
import yaml

from ilm_lib import load_params
from ilm_lib.study.scope import left_out
from ilm_lib.values import merge

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"

#: Every training a few steps, every model of one narrow layer.
TINY: dict[str, Any] = {
    "methods": ["OpenP5-R", "MLP", "ILM-rand", "ILM"],
    "embeddings": {"dim": 4, "iterations": 2},
    "sasrec": {
        "steps": 2, "batch_size": 4, "width": 8, "layers": 1, "heads": 1, "max_length": 5, "eval_every": 1,
        "dev_users": 20, "precision": "float32",
    },
    "qformer": {
        "num_query_tokens": 2, "layers": 1, "width": 16, "heads": 2, "contrast_dim": 8, "text_vocab": 400,
        "max_text_tokens": 12,
    },
    "phase1": {"steps": 4, "batch_size": 8, "lr": 1e-3, "optimizer": "adamw"},
    "backbone": {
        "layers": 1, "width": 16, "heads": 2, "vocab": 400, "index_tokens": "whole", "steps": 2, "batch_size": 4,
        "optimizer": "adamw",
    },
    "phase2": {"steps": 2, "batch_size": 4, "eval_every": 1, "dev_users": 10, "optimizer": "adamw"},
    "evaluation": {"beams": 10, "batch_size": 64},
    "elm24": {
        "enabled": False, "rows_per_task": 1, "phase1_steps": 2, "backbone_steps": 2, "backbone_batch_size": 2,
        "phase2_steps": 2, "max_new_tokens": 2, "max_text_tokens": 12,
    },
    "ablations": {
        "query_tokens": [1, 2], "seeds": 1, "phase1_steps": 2, "phase2_steps": 2, "max_users": 10, "readings": {},
        "scored": {"LLM of random weights": {"score.llm": "random"}},
    },
    "score": {
        "steps": 2, "batch_size": 4, "dim": 8, "history_max": 5, "eval_every": 1, "dev_users": 20,
        "precision": "float32",
    },
}  # fmt: skip


def write_world(folder: Path, sequences: Iterable[Sequence[int]], texts: Mapping[int, Mapping] | None = None) -> Path:
    """A dataset in OpenP5's form: a line a user, and the text records by item where there are any."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [" ".join([f"u{u}", *(f"i{i}" for i in items)]) for u, items in enumerate(sequences)]
    (folder / "user_sequence.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if texts:
        records = [json.dumps({"id": f"i{i}", **record}) for i, record in texts.items()]
        (folder / "item_text.jsonl").write_text("".join(f"{r}\n" for r in records), encoding="utf-8")
    return folder


class Chain:
    """A profile with a world of its own, and its runs, in a folder.

    Args:
        sequences: items of each user in time order; None: the toy world.
        texts: text records by item.
        draw: write figures out, which takes most of the time.
        settings: sections of the profile that differ from `TINY`.
    """

    def __init__(
        self,
        folder: Path,
        sequences: Iterable[Sequence[int]] | None = None,
        texts: Mapping[int, Mapping] | None = None,
        *,
        draw: bool = True,
        **settings: Any,
    ):
        self.draw, self.folder, data = (
            draw,
            folder,
            {"source": "toy", "num_items": 90, "num_users": 50, "history_max": 5},
        )
        if sequences is not None:
            write_world(folder / "data" / "small", sequences, texts)
            data = {"source": "openp5", "name": "Small", "folder": "small", "history_max": 5}
        self.profile = folder / "small.yaml"
        values = merge(merge(TINY, {"profile": "small", "data": data}), settings)
        self.profile.write_text(yaml.safe_dump(values), encoding="utf-8")
        self.environment = {"ILM_RUNS_DIR": str(folder / "runs"), "ILM_DATA_DIR": str(folder / "data")}
        self.environment |= {"ILM_PROGRESS": os.devnull}

    def run(self, notebooks: Iterable[str] | None = None) -> dict[str, str]:
        """Run notebooks by their numbers, e.g. ["01", "04"]; what each printed. None: all that the grid would run."""
        return {number: self.notebook(number) for number in notebooks or self.planned()}

    def planned(self) -> list[str]:
        """The numbers of the notebooks that the grid runs for the profile, in an order that it may take."""
        skipped = {*left_out(load_params(self.profile)), "08_speed"}  # it is about no profile
        return [path.name[:2] for path in sorted(NOTEBOOKS.glob("*.ipynb")) if path.stem not in skipped]

    def notebook(self, number: str) -> str:
        """Run one; notebook 04 once a method, as the grid does."""
        with mock.patch.dict(os.environ, self.environment):
            methods = load_params(self.profile).methods
            return "".join(self._execute(number, m) for m in (methods if number == "04" else [""]))

    def _execute(self, number: str, method: str) -> str:
        (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
        cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
        namespace: dict[str, Any] = {"__name__": "__main__", "display": lambda *shown: None}
        said = io.StringIO()
        matplotlib.use("Agg")
        undrawn = contextlib.nullcontext() if self.draw else mock.patch("matplotlib.figure.Figure.savefig")
        with contextlib.redirect_stdout(said), undrawn:
            for at, cell in enumerate(cells):
                exec(compile("".join(cell["source"]), f"{path.name}, code cell {at}", "exec"), namespace)
                if at == 0:  # the parameters cell; as papermill does, values are put after it
                    namespace |= {"profile": str(self.profile), "method": method, "overrides": {}}
        matplotlib.pyplot.close("all")
        return said.getvalue()

    def results(self) -> pd.DataFrame:
        return pd.read_csv(self.folder / "runs" / "small" / "results.csv", keep_default_na=False)

    def claims(self) -> pd.DataFrame:
        return pd.read_csv(self.folder / "runs" / "small" / "claims.csv")
