"""Build a dataset in OpenP5's form from its raw files, downloaded where they are missing.

    python -m ilm_lib.data ML1M
    python -m ilm_lib.data --csv interactions.csv --texts texts.jsonl Mine
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import pandas as pd

from ilm_lib.paper import PAPER_TABLE2, table2_counts

from . import data_dir
from .dataset import TEXT_FIELDS, Dataset
from .download import DATASETS, fetch
from .openp5 import DataError, load_openp5
from .prepare import prepare, write_openp5
from .raw import Texts, read_amazon_reviews, read_amazon_texts, read_csv, read_movielens, read_texts

# Users, items and interactions of the files that OpenP5 published.
OPENP5_COUNTS = {
    "ML100K": (943, 1_349, 99_287),
    "ML1M": (6_040, 3_416, 999_611),
    "Beauty": (22_363, 12_101, 198_502),
    "Clothing": (39_387, 23_033, 278_677),
}
ROWS = ("users", "items", "interactions", "training examples", "test examples")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, or 1 after a message on stderr."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.csv is None and args.name not in DATASETS:
        parser.error(f"NAME is one of {', '.join(DATASETS)}, unless --csv gives the interactions")
    if not re.fullmatch(r"\w[\w.-]*", args.name):
        parser.error(f"{args.name!r} cannot name a folder: use letters, digits and . _ -")
    try:
        dataset, notes = build(args)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for step, dropped in notes.items():
        print(f"{dropped:>12,} interactions dropped: {step}")
    print(f"{dataset.notes['items_without_text']:>12,} items without text", end="\n\n")
    print(counts(dataset).to_string(na_rep="", float_format="{:,.0f}".format), end="\n\n")
    for warning in differences(dataset):
        print(f"warning: {warning}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ilm_lib.data", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("name", metavar="NAME", help=f"{', '.join(DATASETS)}; with --csv, any name")
    parser.add_argument("--folder", type=Path, metavar="FOLDER",
                        help="the data folder (default: ILM_DATA_DIR, else data/): raw files are "
                        "kept in FOLDER/raw, the dataset goes to FOLDER/openp5/NAME, which must "
                        "not exist")  # fmt: skip
    parser.add_argument("--csv", type=Path, metavar="FILE",
                        help="your own interactions: a header that names user, item, timestamp "
                        "(whole numbers), other columns are ignored")  # fmt: skip
    parser.add_argument("--texts", type=Path, metavar="FILE",
                        help='item texts, a JSON object a line: {"id": item, "title": ..., ...}; '
                        f"read are {', '.join(TEXT_FIELDS)}; they replace those of the raw "
                        "files")  # fmt: skip
    parser.add_argument("--core", type=int, metavar="K",
                        help="drop users and items with fewer than K interactions until none is "
                        "left (default: 5, with --csv 0); a user always needs 3 items")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="draws the item numbers (default: 0)")
    return parser


def build(args: argparse.Namespace) -> tuple[Dataset, dict[str, int]]:
    """The dataset, written and read again, and what was dropped on the way (`prepare`)."""
    root = args.folder or data_dir()
    folder = root / "openp5" / args.name
    if folder.exists():  # before a download, not after it
        raise DataError(folder, None, "is there already, and is left as it is",
                        "Remove it or build into another place with --folder")  # fmt: skip
    own = read_texts(args.texts) if args.texts else {}
    texts: Texts = {}
    if args.csv:
        table, notes = prepare(read_csv(args.csv), 0 if args.core is None else args.core)
    else:
        core = 5 if args.core is None else args.core
        files = [_raw_file(file, root / "raw") for file in DATASETS[args.name]]
        print("reading the raw files", flush=True)
        if len(files) == 1:
            table, texts = read_movielens(files[0])
            table, notes = prepare(table, core)
        else:
            table, notes = prepare(read_amazon_reviews(files[0]), core)
            texts = read_amazon_texts(files[1], set(table["item"]))
    merged = {item: {**texts.get(item, {}), **own.get(item, {})} for item in {**texts, **own}}
    write_openp5(folder, table, merged, seed=args.seed)
    print(f"wrote {folder}", end="\n\n")
    return load_openp5(folder), notes


def _raw_file(file: str, folder: Path) -> Path:
    """The file, fetched where it is missing, or the folder of an archive unpacked by hand."""
    unpacked = folder / file.removesuffix(".zip")
    return unpacked if unpacked.is_dir() else fetch(file, folder)


def counts(dataset: Dataset) -> pd.DataFrame:
    """The counts of a dataset beside those of OpenP5's files and Table 2, NaN where unknown."""
    columns = {"here": _counts(dataset.num_users, dataset.num_items, dataset.num_interactions)}
    if dataset.name in OPENP5_COUNTS:
        columns["OpenP5's files"] = _counts(*OPENP5_COUNTS[dataset.name])
    for row in PAPER_TABLE2[PAPER_TABLE2["dataset"] == dataset.name].itertuples():
        values = (row.users, row.items, None, row.train, row.test)
        columns["paper's Table 2"] = dict(zip(ROWS, values, strict=True))
    return pd.DataFrame(columns, ROWS, dtype=float)


def _counts(users: int, items: int, interactions: int) -> dict[str, int]:
    examples = table2_counts(users, items, interactions)
    return dict(zip(ROWS, (users, items, interactions, examples["train"], examples["test"]), strict=True))


def differences(dataset: Dataset) -> list[str]:
    """In words, each count that differs from OpenP5's files or from Table 2."""
    table = counts(dataset)
    found = [
        f"{row} here: {table.at[row, 'here']:,.0f}, {source}: {value:,.0f}, "
        f"a difference of {table.at[row, 'here'] - value:+,.0f}"
        for source in table.columns[1:]
        for row, value in table[source].dropna().items()
        if value != table.at[row, "here"]
    ]
    if "OpenP5's files" in table and table["here"].equals(table["OpenP5's files"]) and found:
        found.append("the counts equal those of OpenP5's files; it is the paper's that differs")
    elif found:
        found.append("this is another dataset than the paper's; its tables cannot be compared")
    return found


if __name__ == "__main__":
    sys.exit(main())
