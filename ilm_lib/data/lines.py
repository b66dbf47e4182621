"""Text files from outside, line by line, and the one error for what is wrong in them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import re
import zlib
from pathlib import Path
from typing import Any, NoReturn

from ilm_lib.errors import Refusal

SHOWN = 170  # characters of what is wrong that a message shows
MOST_UNPACKED = 1 << 30  # bytes that any gzip may unpack to; a larger one may be 100 times its size
BROKEN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # no id holds a control character or half of a pair
LONE_CR = re.compile(rb"\r(?!\r*(?:\n|\Z))")
NO_TEXT = {
    b"\x1f\x8b": ("is packed with gzip", "Unpack it, or end its name in .gz where JSON lines are read"),
    b"PK": ("is a zip or a spreadsheet", "Save its content as a text file in UTF-8"),
    b"\xff\xfe": ("is UTF-16", "Save the file as UTF-8"),
    b"\xfe\xff": ("is UTF-16", "Save the file as UTF-8"),
}


class DataError(Refusal, ValueError):
    """Input that cannot be used; the message gives file, line, what is wrong and a remedy."""

    def __init__(self, path: Path, line: int | None, wrong: str, remedy: str):
        where = f"{path}:{line}" if line else f"{path}"
        super().__init__(f"{where}: {shown(wrong)}. {remedy}.")


def shown(text: str, most: int = SHOWN) -> str:
    """The text on one line; of a long one the start and the end."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most * 3 // 5]} ... {text[5 - most * 2 // 5 :]}"


def is_id(raw_id: object) -> bool:
    """Blanks stand between ids in the OpenP5 form, so none can be within them, nor what no file can hold or show."""
    if not isinstance(raw_id, str):
        return False
    if raw_id.isprintable():  # nearly all are
        return raw_id != "" and " " not in raw_id
    return raw_id.split() == [raw_id] and not BROKEN.search(raw_id)


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises DataError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None


def read_lines(path: Path) -> tuple[list[tuple[int, str]], str, int]:
    """(line number, text) of every line that is not blank, the sha256, the blank lines.

    UTF-8 only, plain or .gz. Raises DataError when missing, empty, damaged or not UTF-8.
    """
    raw = read_bytes(path)
    checksum = hashlib.sha256(raw).hexdigest()
    if path.suffix == ".gz":
        raw = _unpacked(path, raw)
    all_lines = lines_of(path, raw)
    lines = [(n, line) for n, line in enumerate(all_lines, 1) if line and not line.isspace()]
    if not lines:
        raise empty(path)
    return lines, checksum, len(all_lines) - len(lines)


def read_json_lines(path: Path, lines: list[tuple[int, str]]) -> list[tuple[int, dict[str, Any]]]:
    """(line number, object) of lines of `read_lines`.

    Raises DataError where a line is no JSON object, gives a key twice, or holds NaN, infinity or half of a surrogate
    pair, which could not be written again.
    """
    records = []
    for n, line in lines:
        try:
            record = _JSON.decode(line)
            if "\\ud" in line or "\\uD" in line:
                json.dumps(record, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            wrong = f"is no JSON ({error.msg} at column {error.colno})"
            raise DataError(path, n, wrong, "Write one JSON object a line") from None
        except UnicodeEncodeError as error:
            wrong = f"holds {error.object[error.start : error.end]!a}, half of a surrogate pair, which is no character"
            raise DataError(path, n, wrong, "Write both halves or leave it out") from None
        except RecursionError:
            raise DataError(path, n, "is nested too deeply", "Write one JSON object a line") from None
        except ValueError as error:
            raise DataError(path, n, f"is no JSON that can be used ({error})", "Write null or mend it") from None
        if not isinstance(record, dict):
            raise DataError(path, n, "is no JSON object", "Write one JSON object a line")
        records.append((n, record))
    return records


def text_of(path: Path, raw: bytes, lines_before: int = 0, bytes_before: int = 0) -> str:
    """The text of a file, or of a block that starts after so many lines and bytes; DataError where it is no UTF-8."""
    try:
        text = raw.decode("utf-8")
        at = raw.find(b"\0")
        wrong = "a NUL byte, which no text holds"
    except UnicodeDecodeError as error:
        at = error.start
        wrong = f"byte {raw[at]:#04x} at offset {bytes_before + at} is not UTF-8"
    if at >= 0:
        other = [said for start, said in NO_TEXT.items() if raw.startswith(start) and not bytes_before]
        wrong, remedy = other[0] if other else (wrong, "Save the file as UTF-8")
        raise DataError(path, lines_before + raw.count(b"\n", 0, at) + 1, wrong, remedy)
    return text if bytes_before else text.removeprefix("\ufeff")


def lines_of(path: Path, raw: bytes, lines_before: int = 0, bytes_before: int = 0) -> list[str]:
    """The lines of a file or a block, as `text_of` reads it."""
    text = text_of(path, raw, lines_before, bytes_before)
    if b"\r" in raw and (found := LONE_CR.search(raw)):
        line = lines_before + raw.count(b"\n", 0, found.start()) + 1
        wrong = "a carriage return stands within a line, as line ends of old Macs do"
        raise DataError(path, line, wrong, "End lines with a line feed")
    # Not splitlines(): it also breaks at U+2028 and its like, which JSON strings may hold.
    return text.removesuffix("\n").split("\n")


def unreadable(path: Path, error: OSError) -> DataError:
    return DataError(path, None, f"cannot be read ({error.strerror or error})", "Check the path")


def empty(path: Path) -> DataError:
    return DataError(path, None, "is empty", "Write at least one line or remove the file")


def _unpacked(path: Path, raw: bytes) -> bytes:
    most = max(MOST_UNPACKED, 100 * len(raw))
    try:
        with gzip.open(io.BytesIO(raw)) as file:
            text = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(path, None, f"damaged gzip ({error})", "Fetch it again") from None
    if len(text) > most:
        wrong = f"is a gzip of {len(raw):,} bytes that unpacks to more than {most:,}"
        raise DataError(path, None, wrong, "Unpack it by hand to see what it holds")
    return text


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(n for n in names if names.count(n) > 1)!r} twice")
    return found


def _finite(number: str) -> float:
    if math.isinf(value := float(number)):
        raise ValueError(f"{number} is beyond what a number can be")
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


_JSON = json.JSONDecoder(object_pairs_hook=_once, parse_float=_finite, parse_constant=_no_number)
