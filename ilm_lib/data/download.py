"""Raw files from their public mirrors, checked by SHA-256.

The registry is data: `DATASETS` names the files of a dataset, `FILES` says where each may be
found and which digest it must have. Nothing is downloaded before `fetch` is called.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pooch
from requests.exceptions import RequestException

from ilm_lib.data.lines import DataError, shown
from ilm_lib.files import sha256

TIMEOUT = 30.0  # seconds to connect, and between two pieces of an answer

# GroupLens' TLS certificate expired on 28 August 2026. Plain http is safe here: whatever comes
# must have the pinned digest.
MOVIELENS = (
    "https://files.grouplens.org/datasets/movielens/",
    "http://files.grouplens.org/datasets/movielens/",
    "https://huggingface.co/datasets/Recommenders/MovieLens/resolve/main/",  # byte-identical
)
AMAZON = (
    "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/",
    "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles/",
)
# The commit is part of the address, so that the file cannot change.
OPENP5 = (
    "https://raw.githubusercontent.com/agiresearch/OpenP5/7f110389cd5ab51820e29e94a44b6db83df243fb/",
    "https://cdn.jsdelivr.net/gh/agiresearch/OpenP5@7f110389cd5ab51820e29e94a44b6db83df243fb/",
)
AMAZON_REVIEWS = (*AMAZON, "https://jmcauley.ucsd.edu/data/amazon/categoryFilesSmall/")


@dataclass(frozen=True)
class RawFile:
    """Where a file may be found, and what it must be.

    Without a published digest (`sha256` is None) the one found first is written beside the file
    and holds from then on; whether the content is the paper's shows in the counts of Table 2.
    """

    mirrors: tuple[str, ...]  # folders of URLs, tried in this order
    sha256: str | None


PROMPT_FILE = "prompt.txt"  # OpenP5's prompt templates

DATASETS: dict[str, tuple[str, ...]] = {
    "ML100K": ("ml-100k.zip",),
    "ML1M": ("ml-1m.zip",),
    "latest-small": ("ml-latest-small.zip",),
    "Beauty": ("reviews_Beauty_5.json.gz", "meta_Beauty.json.gz"),
    "Clothing": (
        "reviews_Clothing_Shoes_and_Jewelry_5.json.gz", "meta_Clothing_Shoes_and_Jewelry.json.gz"
    ),
}  # fmt: skip

FILES: dict[str, RawFile] = {
    "ml-100k.zip": RawFile(MOVIELENS, "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"),
    "ml-1m.zip": RawFile(MOVIELENS, "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20"),
    "ml-latest-small.zip": RawFile(MOVIELENS, "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436"),
    PROMPT_FILE: RawFile(OPENP5, "7013729df846067007ce3d0ad71359b1d1008f654624ddf7d18239b4a1fa01e2"),
    # Amazon 2014: no SHA-256 is published.
    "reviews_Beauty_5.json.gz": RawFile(AMAZON_REVIEWS, None),
    "meta_Beauty.json.gz": RawFile(AMAZON, None),
    "reviews_Clothing_Shoes_and_Jewelry_5.json.gz": RawFile(AMAZON_REVIEWS, None),
    "meta_Clothing_Shoes_and_Jewelry.json.gz": RawFile(AMAZON, None),
}


def fetch(file: str, folder: Path) -> Path:
    """The path of a file of the registry in `folder`, downloaded there unless it is there.

    The file is checked each time: against its pinned SHA-256 or, where none is published, against
    the digest found the first time (`<file>.sha256` beside it). A download that fails leaves
    nothing behind.

    Raises KeyError for a file that is not in the registry; DataError for a file with another
    digest, a folder that cannot be written, and where no mirror gave the file: the message then
    says why, where it may be found and where to put it; each mirror is told as it is tried.
    """
    known = FILES[file]
    target = Path(folder).resolve() / file
    if not target.exists():
        _download(known, target)
    note = target.with_name(f"{file}.sha256")
    try:
        digest, expected = sha256(target), known.sha256 or _noted(note)
        if expected is None:
            note.write_text(f"{digest}  {file}\n", encoding="utf-8")
            print(f"{file}: no SHA-256 is published, found {digest}; noted in {note.name}")
    except OSError as error:
        wrong = f"cannot be read or written ({error.strerror})"
        raise DataError(Path(error.filename or target), None, wrong, "Check the folder") from None
    if expected and digest != expected:
        wrong, remedy = f"has SHA-256 {digest}, expected {expected}", "Delete the file"
        remedy += "" if known.sha256 else f" (with {note.name}, if the new one is meant)"
        raise DataError(target, None, wrong, f"{remedy} to have it downloaded again")
    return target


def _noted(note: Path) -> str | None:
    """The digest that was found first, None where there is no note."""
    if not note.exists():
        return None
    if not (found := re.match(rb"[0-9a-f]{64}\s", note.read_bytes())):
        raise DataError(note, None, "holds no SHA-256", "Delete it, and the file that it vouches for")
    return found[0].decode().strip()


def _download(known: RawFile, target: Path) -> None:
    get = pooch.HTTPDownloader(timeout=TIMEOUT, progressbar=sys.stderr.isatty())

    def get_data(url: str, output: str, registry: pooch.Pooch | None) -> None:
        get(url, output, registry)
        with open(output, "rb") as file:
            start = file.read(64).lstrip()
        # Only a digest tells all; without one at least an error page is not taken for data.
        if start[:1] in (b"", b"<") or (known.sha256 is None and not start.startswith((b"\x1f\x8b", b"{"))):
            raise ValueError("an empty, HTML or text page, not the file")
        if known.sha256 not in (None, sha256(Path(output))):
            raise ValueError(f"another SHA-256, {sha256(Path(output))}")

    pooch.get_logger().setLevel("WARNING")  # it would say on stderr what is printed here
    failures = []
    for url in (mirror + target.name for mirror in known.mirrors):
        print(f"{target.name}: from {url}", flush=True)
        try:
            pooch.retrieve(url, known.sha256, target.name, target.parent, downloader=get_data)
            return
        except (RequestException, ValueError) as error:
            failures.append(shown(_reason(error), 44))
            print(f"{target.name}: {_reason(error)}", flush=True)
        except OSError as error:
            wrong = f"cannot be written ({error.strerror})"
            raise DataError(target, None, wrong, "Choose a folder you may write to") from None
    wrong = f"is missing and no mirror gave it ({'; '.join(dict.fromkeys(failures)) or 'none is known'})"
    digest = f"SHA-256 {known.sha256}" if known.sha256 else "no SHA-256 is published"
    source = f"; it was at {known.mirrors[0]}{target.name}" if known.mirrors else ""
    raise DataError(target, None, wrong, f"Put {target.name} ({digest}) there{source}")


def _reason(error: Exception) -> str:
    """The innermost cause in a few words; requests wraps it in two or three others."""
    if (response := getattr(error, "response", None)) is not None:
        return f"HTTP {response.status_code}"
    if isinstance(error, RequestException):
        cause = getattr(error.args[0], "reason", error) if error.args else error
        return str(cause).rpartition(": ")[2] or type(error).__name__
    return str(error)
