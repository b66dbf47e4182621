"""The two files everything downstream reads, `results.csv` and `claims.csv`: their contract, safe writing, reading.

`results.csv` is tidy, a row a metric of one run:
`table,dataset,task,prompt,history,readout,method,variant,seed,metric,value,n`. Rows of table "figure3" (effect of the
number of query tokens) have a variant as "query_tokens=4", those of "prompts read" (an LLM frozen earlier or later) as
"prompts_read=54".
"""

from __future__ import annotations

import hashlib
import math
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path

import pandas as pd
from filelock import FileLock

from ilm_lib.files import write_text
from ilm_lib.methods import METHODS
from ilm_lib.paper import (
    CHAT_CLAIMS,
    ELM_CLAIMS,
    METRICS,
    OPENP5_CLAIMS,
    RANKING_METRICS,
    RECALL_METRICS,
    REPLY_METRICS,
    RESULT_COLUMNS,
    SCORING_CLAIMS,
    SUCCESS_METRICS,
)
from ilm_lib.report.verdicts import VERDICTS

CLAIM_COLUMNS = ("claim", "paper", "ours", "ci_low", "ci_high", "p_value", "seeds", "verdict", "evidence", "reason")
_CHAPTERS = (
    OPENP5_CLAIMS,
    ELM_CLAIMS,
    SCORING_CLAIMS,
    CHAT_CLAIMS,
)  # in the order of the file; a notebook writes all of one
_CLAIMS = [claim for chapter in _CHAPTERS for claim in chapter.values()]
_KEY = [c for c in RESULT_COLUMNS if c not in ("value", "n")]
_TEXT = [c for c in _KEY if c != "seed"]
_CURVES = {"figure3": "query_tokens", "prompts read": "prompts_read"}  # tables over a setting, and the setting


def _lock(path: Path) -> FileLock:
    # In the temporary folder: the file's own is copied to the report.
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]
    return FileLock(Path(tempfile.gettempdir()) / f"ilm-{name}.lock")


def _refuse(rows: pd.DataFrame, bad: pd.Series, why: str) -> None:
    if bad.any():
        row = rows[bad].iloc[0][list(RESULT_COLUMNS)].to_dict()
        raise ValueError(f"{bad.sum()} row(s) refused: {why}. The first: {row}")


def check_results(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` in the contract's column order and types, values rounded to 6 decimals.

    Raises:
        ValueError: a column is missing or unknown, a name is not in the contract, a value is
            not finite or out of its range, `n` is not positive, or two rows have one key.
    """
    if set(rows.columns) != set(RESULT_COLUMNS):
        odd = sorted(set(rows.columns) ^ set(RESULT_COLUMNS))
        raise ValueError(f"results need exactly the columns {', '.join(RESULT_COLUMNS)}; missing or unknown: {odd}")
    rows = rows[list(RESULT_COLUMNS)].reset_index(drop=True)
    for column in _TEXT:
        rows[column] = rows[column].astype(object).where(rows[column].notna(), "").astype(str)
    for column in ("seed", "n"):
        rows[column] = pd.to_numeric(rows[column].replace("", pd.NA)).astype("Int64")
    rows["value"] = pd.to_numeric(rows["value"]).astype(float).round(6)
    allowed: dict[str, tuple[str, ...]] = {
        "method": tuple(METHODS), "metric": METRICS, "prompt": ("seen", "unseen", ""),
        "history": ("kept", "excluded", ""), "readout": ("beam", "score", ""),
    }  # fmt: skip
    for column, names in allowed.items():
        _refuse(rows, ~rows[column].isin(names), f"{column} must be one of {', '.join(n or '(empty)' for n in names)}")
    for column in ("table", "dataset", "task"):
        _refuse(rows, rows[column] == "", f"{column} is empty")
    _refuse(rows, ~rows["value"].map(math.isfinite), "value is not finite")
    ranking = rows["metric"].isin(RANKING_METRICS)
    _refuse(rows, ranking & ~rows["value"].between(0, 1), "hit rates and NDCG lie in [0, 1]")
    talks = rows["metric"].isin(SUCCESS_METRICS + RECALL_METRICS + REPLY_METRICS)
    _refuse(rows, talks & ~rows["value"].between(0, 1), "success, recall, MRR and shares lie in [0, 1]")
    _refuse(rows, ranking & (rows["history"] == ""), "hit rates and NDCG need a history rule, kept or excluded")
    over_llm = rows["method"].map(lambda m: METHODS[m].encoder is not None)
    _refuse(rows, ranking & over_llm & (rows["readout"] == ""), "hit rates over an LLM need a readout, beam or score")
    _refuse(rows, ~(ranking & over_llm) & (rows["readout"] != ""), "baselines and texts have no readout")
    _refuse(rows, (rows["metric"] == "SC") & ~rows["value"].between(-1, 1), "SC is a cosine, not per cent")
    _refuse(rows, (rows["metric"] == "log_pplx") & (rows["value"] < 0), "log perplexity is not negative")
    _refuse(rows, ~(rows["n"] > 0).fillna(False), "n, the number of test examples, must be positive")
    wellformed = rows["variant"].str.fullmatch(r"([a-z]\w*=[^=]+)?")
    _refuse(rows, ~wellformed, "variant is empty or key=value, as 'query_tokens=4'")
    for table, key in _CURVES.items():
        other = ~rows["variant"].str.fullmatch(rf"{key}=\d+")
        _refuse(rows, (rows["table"] == table) & other, f"the variant of {table} is '{key}=<number>'")
    _refuse(rows, rows.duplicated(_KEY, keep=False), f"rows share one key ({', '.join(_KEY)})")
    return rows


def _natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts numbers in a text by their size."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", text) if p]


def _sort_key(row: dict) -> tuple:
    seed = -1 if pd.isna(row["seed"]) else int(row["seed"])
    group = row["table"], row["dataset"], row["history"], row["prompt"], _natural(row["task"]), _natural(row["variant"])
    return *group, list(METHODS).index(row["method"]), row["readout"], seed, METRICS.index(row["metric"])


def write_results(path: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Upsert `rows` into the results file and return all of it.

    Rows that agree in all but value and n are replaced, others kept. Safe to call from several processes: the file is
    locked while it is read and replaced. Raises ValueError for rows that break the contract (`check_results`), leaving
    the file as it was.
    """
    path, rows = Path(path), check_results(rows)
    with _lock(path):
        rows = _joined([read_results(path), rows] if path.exists() else [rows])
        write_text(path, rows.to_csv(index=False, lineterminator="\n"))
    return rows


def _joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Checked rows in the order of the file: table, dataset, history, prompt, task, variant, method, read-out, seed."""
    rows = pd.concat(parts).drop_duplicates(_KEY, keep="last")
    order = [i for _, i in sorted((_sort_key(r), i) for i, r in enumerate(rows.to_dict("records")))]
    return rows.iloc[order].reset_index(drop=True)


def join_results(files: Mapping[Path, str]) -> pd.DataFrame | None:
    """The rows of several results files, given as text, as one; a later file has the last word. None: no files."""
    return _joined([_parse_results(path, text) for path, text in files.items()]) if files else None


def read_results(path: Path) -> pd.DataFrame:
    """The results file, checked; empty text cells are "", an empty seed is NA.

    Raises:
        ValueError: the file is of an earlier version, or a row breaks the contract.
    """
    return _parse_results(path, path.read_text(encoding="utf-8"))


def _parse_results(path: Path, text: str) -> pd.DataFrame:
    rows = pd.read_csv(StringIO(text), dtype=str, keep_default_na=False)
    _refuse_old(path, rows, RESULT_COLUMNS)
    return check_results(rows)


def _refuse_old(path: Path, rows: pd.DataFrame, columns: tuple[str, ...]) -> None:
    if missing := [c for c in columns if c not in rows.columns]:
        raise ValueError(
            f"{path}: no column {', '.join(missing)}; an earlier version wrote this file. "
            "Remove it and run the study again (make study PROFILE=...): what is still valid is not computed anew"
        )


@dataclass(frozen=True)
class Claim:
    """A claim of the paper: its number, ours, the 95% interval and two-sided p-value of the difference.

    `evidence` names what shows it (notebook, table, figure), `reason` says in words why the verdict is what it is. NaN
    where nothing was tested.
    """

    claim: str
    paper: str | float
    ours: str | float
    ci_low: float
    ci_high: float
    p_value: float
    seeds: int
    verdict: str
    evidence: str
    reason: str

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict must be one of {', '.join(VERDICTS)}; got {self.verdict!r}")
        if not self.claim.strip():
            raise ValueError("a claim needs its sentence")
        if not self.reason.strip():
            raise ValueError(f"a verdict needs its reason in words: {self.claim!r}")


def _chapter(claim: str) -> int:
    """The chapter of a claim, from 1; 0 for a claim that belongs to none."""
    return next((n for n, chapter in enumerate(_CHAPTERS, 1) if claim in chapter.values()), 0)


def write_claims(path: Path, claims: Iterable[Claim]) -> pd.DataFrame:
    """Write claims in the paper's order, whatever the order of writing (several notebooks write); returns all.

    Claims replace those on file of the same sentence. They also replace the rest of their chapter, as that on OpenP5: a
    claim about a method that is no longer in the profile does not stay behind.
    """
    rows = pd.DataFrame([asdict(c) for c in claims], columns=list(CLAIM_COLUMNS))
    if rows["claim"].duplicated().any():
        raise ValueError(f"claims given twice: {list(rows.loc[rows['claim'].duplicated(), 'claim'])}")
    rows = rows.map(lambda v: round(v, 6) if isinstance(v, float) else v).astype(object)
    path = Path(path)
    with _lock(path):
        if path.exists():
            old = read_claims(path).astype(object)
            written = set(rows["claim"].map(_chapter)) - {0}
            rows = pd.concat([old[~old["claim"].map(_chapter).isin(written)], rows])
        write_text(path, _in_order(rows).to_csv(index=False, lineterminator="\n"))
    return read_claims(path)


def _in_order(claims: pd.DataFrame) -> pd.DataFrame:
    """Each claim once, the last that was said, in the paper's order, others after them by name."""
    claims = claims.drop_duplicates("claim", keep="last")
    rank = {claim: i for i, claim in enumerate(_CLAIMS)}
    keys = [(rank.get(c, len(rank)), c) for c in claims["claim"]]
    return claims.iloc[sorted(range(len(keys)), key=keys.__getitem__)].reset_index(drop=True)


def join_claims(files: Mapping[Path, str]) -> pd.DataFrame | None:
    """The claims of several files, given as text, as one; a later file has the last word. None: no files."""
    return _in_order(pd.concat([_parse_claims(path, text) for path, text in files.items()])) if files else None


def read_claims(path: Path) -> pd.DataFrame:
    """The claims file: numbers in ci_low, ci_high, p_value and seeds, text elsewhere.

    Raises:
        ValueError: the file is of an earlier version, or has other columns.
    """
    return _parse_claims(path, path.read_text(encoding="utf-8"))


def _parse_claims(path: Path, text: str) -> pd.DataFrame:
    claims = pd.read_csv(StringIO(text), dtype=str, keep_default_na=False)
    _refuse_old(path, claims, CLAIM_COLUMNS)
    if tuple(claims.columns) != CLAIM_COLUMNS:
        raise ValueError(f"{Path(path).name}: columns must be {', '.join(CLAIM_COLUMNS)}")
    for column in ("ci_low", "ci_high", "p_value"):
        claims[column] = pd.to_numeric(claims[column].replace("", None)).astype(float)
    return claims.assign(seeds=pd.to_numeric(claims["seeds"]).astype(int))
