"""The two files everything downstream reads: `results.csv` and `claims.csv`.

`results.csv` is tidy, a row a metric of one run:
`table,dataset,task,prompt,history,method,seed,metric,value,n`. In rows of table "figure3"
(effect of the number of query tokens) `task` holds that number, as "N=4"; in those of "prompts read"
(an LLM frozen earlier or later) the task and how much it read, as "sequential, 54 a user".
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from filelock import FileLock

from ilm_lib.paper import METHODS, METRICS, RANKING_METRICS, RESULT_COLUMNS

CLAIM_COLUMNS = ("claim", "paper", "ours", "ci_low", "ci_high", "p_value", "seeds", "verdict", "evidence")
VERDICTS = ("reproduced", "not reproduced", "inconclusive", "not tested")
_KEY = [c for c in RESULT_COLUMNS if c not in ("value", "n")]
_TEXT = [c for c in _KEY if c != "seed"]


def write_text(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _lock(path: Path) -> FileLock:
    # In the temporary folder: reports are committed, a lock file has no place among them.
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
        "method": METHODS, "metric": METRICS, "prompt": ("seen", "unseen", ""), "history": ("kept", "excluded", "")
    }  # fmt: skip
    for column, names in allowed.items():
        _refuse(rows, ~rows[column].isin(names), f"{column} must be one of {', '.join(n or '(empty)' for n in names)}")
    for column in ("table", "dataset", "task"):
        _refuse(rows, rows[column] == "", f"{column} is empty")
    _refuse(rows, ~rows["value"].map(math.isfinite), "value is not finite")
    ranking = rows["metric"].isin(RANKING_METRICS)
    _refuse(rows, ranking & ~rows["value"].between(0, 1), "hit rates and NDCG lie in [0, 1]")
    _refuse(rows, ranking & (rows["history"] == ""), "hit rates and NDCG need a history rule, kept or excluded")
    _refuse(rows, (rows["metric"] == "SC") & ~rows["value"].between(-1, 1), "SC is a cosine, not per cent")
    _refuse(rows, (rows["metric"] == "log_pplx") & (rows["value"] < 0), "log perplexity is not negative")
    _refuse(rows, ~(rows["n"] > 0).fillna(False), "n, the number of test examples, must be positive")
    for table, pattern, form in (("figure3", r"N=\d+", "N=<query tokens>"),
                                 ("prompts read", r"\w+, \d+ a user", "<task>, <prompts> a user")):
        other = ~rows["task"].str.fullmatch(pattern)
        _refuse(rows, (rows["table"] == table) & other, f"the task of {table} is '{form}'")
    _refuse(rows, rows.duplicated(_KEY, keep=False), f"rows share one key ({', '.join(_KEY)})")
    return rows


def _sort_key(row: dict) -> tuple:
    parts = [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", row["task"]) if p]
    seed = -1 if pd.isna(row["seed"]) else int(row["seed"])
    names = METHODS.index(row["method"]), seed, METRICS.index(row["metric"])
    return row["table"], row["dataset"], row["history"], row["prompt"], parts, names


def write_results(path: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """Upsert `rows` into the results file and return all of it.

    Rows of the same (table, dataset, task, prompt, history, method, seed, metric) are
    replaced, others kept. Safe to call from several processes: the file is locked while it
    is read and replaced. Raises ValueError for rows that break the contract
    (`check_results`), leaving the file as it was.
    """
    path, rows = Path(path), check_results(rows)
    with _lock(path):
        if path.exists():
            rows = pd.concat([read_results(path), rows]).drop_duplicates(_KEY, keep="last")
        order = [i for _, i in sorted((_sort_key(r), i) for i, r in enumerate(rows.to_dict("records")))]
        rows = rows.iloc[order].reset_index(drop=True)
        write_text(path, rows.to_csv(index=False, lineterminator="\n"))
    return rows


def read_results(path: Path) -> pd.DataFrame:
    """The results file, checked; empty text cells are "", an empty seed is NA."""
    return check_results(pd.read_csv(path, dtype=str, keep_default_na=False))


@dataclass(frozen=True)
class Claim:
    """A claim of the paper: its number, ours, the 95% interval and two-sided p-value of the difference.

    `evidence` names what shows it (notebook, table, figure). NaN where nothing was tested.
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

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict must be one of {', '.join(VERDICTS)}; got {self.verdict!r}")
        if not self.claim.strip():
            raise ValueError("a claim needs its sentence")


def verdict(diff: float, ci_low: float, ci_high: float, p_value: float, alpha: float = 0.05) -> str:
    """Verdict on "diff > 0", where `diff` is oriented so that the paper's direction is positive.

    "reproduced" if diff > 0 and p < alpha; "not reproduced" if diff < 0 and the interval lies
    wholly below 0; "not tested" if diff is NaN; else "inconclusive". An absent effect is thus
    never called refuted: too few users or seeds look just the same.

    Raises:
        ValueError: p or alpha is no probability, or the interval is upside down.
    """
    if p_value < 0 or p_value > 1 or not 0 < alpha < 1:
        raise ValueError(f"p_value and alpha are probabilities; got {p_value} and {alpha}")
    if ci_low > ci_high:
        raise ValueError(f"the interval is upside down: [{ci_low}, {ci_high}]")
    if math.isnan(diff):
        return "not tested"
    if diff > 0 and p_value < alpha:
        return "reproduced"
    return "not reproduced" if diff < 0 and ci_high < 0 else "inconclusive"


def write_claims(path: Path, claims: Iterable[Claim]) -> pd.DataFrame:
    """Upsert claims by their sentence into the claims file (several notebooks write it); returns all."""
    rows = pd.DataFrame([asdict(c) for c in claims], columns=list(CLAIM_COLUMNS))
    if rows["claim"].duplicated().any():
        raise ValueError(f"claims given twice: {list(rows.loc[rows['claim'].duplicated(), 'claim'])}")
    rows = rows.map(lambda v: round(v, 6) if isinstance(v, float) else v).astype(object)
    path = Path(path)
    with _lock(path):
        if path.exists():
            old = read_claims(path)
            new = rows.set_index("claim").T.to_dict("list")
            kept = [[r[0], *new.pop(r[0])] if r[0] in new else r for r in old.astype(object).values.tolist()]
            rows = pd.DataFrame(kept + [[c, *r] for c, r in new.items()], columns=list(CLAIM_COLUMNS))
        write_text(path, rows.to_csv(index=False, lineterminator="\n"))
    return read_claims(path)


def read_claims(path: Path) -> pd.DataFrame:
    """The claims file: numbers in ci_low, ci_high, p_value and seeds, text elsewhere."""
    claims = pd.read_csv(path, dtype=str, keep_default_na=False)
    if tuple(claims.columns) != CLAIM_COLUMNS:
        raise ValueError(f"{Path(path).name}: columns must be {', '.join(CLAIM_COLUMNS)}")
    for column in ("ci_low", "ci_high", "p_value"):
        claims[column] = pd.to_numeric(claims[column].replace("", None)).astype(float)
    return claims.assign(seeds=pd.to_numeric(claims["seeds"]).astype(int))
