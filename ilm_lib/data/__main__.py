"""Build a dataset in OpenP5's form from its raw files, downloaded where they are missing, and a profile to study it.

python -m ilm_lib.data ML1M
python -m ilm_lib.data --csv interactions.csv --texts texts.jsonl Mine
python -m ilm_lib.data Mine       the profile alone, of a dataset that is there
python -m ilm_lib.data prompts    OpenP5's prompt templates alone
python -m ilm_lib.data ReDial     films of dialogues and of MovieLens, from the files that data/conversations.py names
"""

from __future__ import annotations

import argparse
import shlex
import sys
import unicodedata
from pathlib import Path

import pandas as pd

from ilm_lib import profiles
from ilm_lib.arguments import BadArgument, Parser, whole
from ilm_lib.data import data_dir
from ilm_lib.data.conversations import NAME as REDIAL
from ilm_lib.data.conversations import as_tables
from ilm_lib.data.dataset import TEXT_FIELDS, Dataset
from ilm_lib.data.download import DATASETS, PROMPT_FILE, fetch
from ilm_lib.data.lines import DataError, shown
from ilm_lib.data.openp5 import COUNTED, load_openp5
from ilm_lib.data.own_profile import Sizes, TooSmall, minutes, write_profile
from ilm_lib.data.prepare import prepare, write_openp5
from ilm_lib.data.raw import Texts, read_amazon_reviews, read_amazon_texts, read_movielens
from ilm_lib.data.records import read_texts
from ilm_lib.data.tables import read_csv
from ilm_lib.errors import Refusal
from ilm_lib.paper import PAPER_TABLE2, table2_counts
from ilm_lib.profiles import load_params, profile_path
from ilm_lib.settings import ParamsError
from ilm_lib.values import names_a_folder

# Users, items and interactions of the files that OpenP5 published.
OPENP5_COUNTS = {
    "ML100K": (943, 1_349, 99_287),
    "ML1M": (6_040, 3_416, 999_611),
    "Beauty": (22_363, 12_101, 198_502),
    "Clothing": (39_387, 23_033, 278_677),
}
PROMPTS = "prompts"  # the NAME that asks for OpenP5's prompts
NAMES = (*DATASETS, REDIAL, PROMPTS)
TEMPLATES = f"openp5/{PROMPT_FILE}"  # `data.templates` of the profiles
ROWS = ("users", "items", "interactions", "training examples", "test examples")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, or 1 after a message on stderr, 2 where it is about the arguments."""
    parser = _parser()
    try:
        return run(parser.parse_args(arguments), parser)
    except Refusal as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadArgument) else 1
    except OSError as error:
        where = error.filename or data_dir()
        wrong = f"cannot be read or written ({error.strerror or error})"
        print(f"error: {DataError(where, None, wrong, 'Check the folder, its rights and the disk')}", file=sys.stderr)
    return 1


def run(args: argparse.Namespace, parser: Parser) -> int:
    """Run the command with its arguments; 0. Raises Refusal and OSError."""
    args.profile = args.profile or args.name.lower()
    for name in (args.name, args.profile):
        if not names_a_folder(name) or name.endswith((".yaml", ".yml")):
            parser.error(f"{shown(repr(name), 60)} cannot name a folder and a profile on every system: use letters, "
                         "digits and . _ -, at most 100 bytes, without .yaml")  # fmt: skip
    root = args.folder or data_dir()
    if args.csv and args.name in (PROMPTS, PROMPT_FILE):
        parser.error(f"{args.name} is the name of OpenP5's prompts: choose another for your data")
    there = args.csv is None and (root / "openp5" / args.name / "user_sequence.txt").is_file()
    if args.csv is None and not there and args.name not in NAMES:
        parser.error(f"NAME is one of {', '.join(NAMES)}, unless --csv gives the interactions")
    if args.csv is None and args.texts and there:
        parser.error(f"--texts needs --csv: {args.name} is there already, and is left as it is")
    if _of_dialogues(args) and args.core is not None:
        parser.error(f"--core is not for {REDIAL}, of which every film stays, rated or not: leave it out")
    if args.csv is None and args.name == PROMPTS:
        print(f"OpenP5's prompts are in {fetch(PROMPT_FILE, root / 'openp5')}")
        return 0
    if there:
        print(f"{root / 'openp5' / args.name} is there already, and is left as it is", end="\n\n")
        dataset = load_openp5(root / "openp5" / args.name)
        tell({what: count for what, count in dataset.notes.items() if what not in COUNTED})
    else:
        dataset = build(args, root)
    print(f"{dataset.notes['items_without_text']:>12,} items without text", end="\n\n")
    print(counts(dataset).to_string(na_rep="", float_format="{:,.0f}".format), end="\n\n")
    for warning in differences(dataset):
        print(f"warning: {warning}")
    add_profile(dataset, args.profile, root)
    return 0


def _parser() -> Parser:
    parser = Parser(prog="python -m ilm_lib.data", description=__doc__)
    parser.add_argument("name", metavar="NAME", help=f"{', '.join(NAMES)}; with --csv, any name")
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
    parser.add_argument("--core", type=whole(10**9, 0), metavar="K",
                        help="drop users and items with fewer than K interactions until none is "
                        "left (default: 5, with --csv 0); a user always needs 3 items")  # fmt: skip
    parser.add_argument("--profile", metavar="NAME",
                        help="the profile to write, params/NAME.yaml (default: the name of the "
                        "data in lower case); one that exists is left as it is")  # fmt: skip
    parser.add_argument("--seed", type=whole(10**18, 0), default=0, help="draws the item numbers (default: 0)")
    return parser


def build(args: argparse.Namespace, root: Path) -> Dataset:
    """The dataset, written below the data folder `root` and read again; says what was dropped on the way."""
    folder = root / "openp5" / args.name
    if folder.exists():  # before a download, not after it
        raise DataError(folder, None, "is there already, and is left as it is",
                        "Remove it or build into another place with --folder")  # fmt: skip
    own, made_clean = read_texts(args.texts) if args.texts else ({}, {})
    texts: Texts = {}
    notes: dict[str, int] = {}
    if _of_dialogues(args):
        print("reading the films and their ratings", flush=True)
        table, texts = as_tables(root)
    elif args.csv:
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
    write_openp5(folder, table, merged, seed=args.seed, catalogue=merged if _of_dialogues(args) else ())
    print(f"wrote {folder}", end="\n\n")
    for warning in doubts(table) if args.csv else ():
        print(f"warning: {warning}")
    for step, dropped in notes.items():
        print(f"{dropped:>12,} interactions dropped: {step}")
    tell(made_clean)
    if lost := len(own.keys() - set(table["item"])):
        print(f"{lost:>12,} texts dropped: of items without interactions")
        if lost == len(own):
            here, there = (shown(repr(i), 60) for i in (next(iter(own)), table["item"].iloc[0]))
            ids = f"{args.texts} has {here}, the interactions have {there}"
            print(f"warning: no text is of an item of the interactions, their ids differ: {ids}")
    return load_openp5(folder)


def _of_dialogues(args: argparse.Namespace) -> bool:
    """Whether the films of ReDial are asked for, and not a table of one's own under that name."""
    return args.csv is None and args.name == REDIAL


def tell(made_clean: dict[str, int]) -> None:
    """Print what became of item texts that were not in the form of `records`."""
    for what, count in made_clean.items():
        print(f"{count:>12,} of the texts: {what.replace('_', ' ')}")


def add_profile(dataset: Dataset, profile: str, root: Path) -> None:
    """Write a profile for the dataset below `root` unless there is one, and say what comes next."""
    folder, path = f"openp5/{dataset.name}", _short(profile_path(profile))
    try:
        written = write_profile(dataset, profile, folder)
    except TooSmall as error:
        print(f"no profile is written, the data are too small: {error}")
        return
    if written:
        params = load_params(profile)
        print(f"wrote {path}, sizes scaled to the data: about {minutes(Sizes.of(dataset), params)} on two cores")
    else:
        print(f"{path} is there already, and is left as it is; --profile NAME writes another")
        try:
            params = load_params(profile)
        except ParamsError as error:
            print(f"warning: it is no valid profile: {error}")
            return
        if params.data.folder != folder:
            print(f"warning: it reads {params.data.folder or 'the toy world'}, not {folder}: use --profile")
            return
    if params.data.templates == TEMPLATES and not (root / TEMPLATES).exists():
        try:
            print(f"OpenP5's prompts are in {fetch(PROMPT_FILE, root / 'openp5')}")
        except DataError as error:
            print(f"warning: {error}\nwarning: without them, leave out data.templates in {path}: ours take their place")
    print(f"next: {next_command(profile, root)}")


def next_command(profile: str, root: Path) -> str:
    """The command that studies a profile of the data folder `root`, for a shell."""
    if not (profiles.ROOT / "Makefile").is_file():
        return (
            f"ilm_lib.load_params({profile!r}) in Python, or `make study PROFILE={profile}` in a checkout of the study"
        )
    place = "" if Path.cwd() == profiles.ROOT else f" -C {shlex.quote(str(profiles.ROOT))}"
    default = profiles.ROOT / "data"
    data = "" if root.resolve() == default.resolve() else f"ILM_DATA_DIR={shlex.quote(str(root.resolve()))} "
    return f"{data}make{place} study PROFILE={shlex.quote(profile)}"


def _short(path: Path) -> Path:
    """The path from here, where it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


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


def doubts(table: pd.DataFrame) -> list[str]:
    """In words, what is taken as it is in a table of one's own and is most likely not meant."""
    found = []
    if table["timestamp"].nunique() == 1:
        found.append("all timestamps are equal, so a user's items are in the order of the file: is it that of time?")
    for kind in ("user", "item"):
        ids = table[kind].unique()
        plain = pd.Series([_plain(text) for text in ids], index=ids)
        twins = plain[plain.duplicated(keep=False)]
        if len(twins):
            first = [shown(repr(i), 40) for i in twins.index[twins == twins.iloc[0]][:2]]
            found.append(
                f"{len(twins):,} {kind}s differ by case or unseen characters alone, e.g. {' and '.join(first)}"
            )
    return found


def _plain(text: str) -> str:
    """An id without what the eye may miss: case, ways to compose a letter, characters without a width."""
    seen = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    return seen.casefold()


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
