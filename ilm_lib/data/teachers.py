"""Language models as teachers of the ELM-24 tasks: instructions in, cleaned target texts out, resumable.

Every answer is appended to a file of JSON lines as it comes, so an interrupted run asks only for what is missing.
`template`, the offline teacher, is in `elm24`; `hf` and `openai` are in modules of their own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from filelock import FileLock

from ilm_lib.data.elm24 import SENTENCE_END
from ilm_lib.data.instructions import Request, Teacher
from ilm_lib.data.openp5 import DataError
from ilm_lib.errors import Refusal
from ilm_lib.progress import progress, say

MAX_TOKENS = 160  # of an answer: 60 words with room
MIN_WORDS = 3
WORD_TOKENS = 1.3  # English words, tokenizers of current LLMs
AGAIN = "\n\nAnswer in plain words, with at least one whole sentence, and without asking back."
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
THINKING = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
POINT = re.compile(r"^(?:[-*•]|\(?\d{1,2}[.)])\s+")
QUOTES = {'"': '"', "“": "”", "'": "'", "‘": "’", "«": "»"}


class TeacherError(Refusal, RuntimeError):
    """A teacher cannot be asked, or does not answer; the message says what to check. Answers so far are kept."""


class LanguageModelTeacher:
    """A teacher that keeps its answers; a subclass says how to ask.

    Args:
        kind: of what is asked, for the column `teacher`.
        model: what is asked. Its name is part of an answer's key: after a change of the weights under an old name
            delete the file of answers.
        answers: JSON lines {"key", "text"}, made when there is something to keep. Two processes may share it: the
            second waits for the first and asks for the rest.
        max_tokens: limit of an answer.
    """

    def __init__(self, kind: str, model: str, answers: Path, max_tokens: int = MAX_TOKENS):
        short = Path(model).resolve().name if Path(model).is_dir() else model  # a folder's place is nobody's business
        self.name, self.model, self.max_tokens = f"{kind}:{short}", model, max_tokens
        self.answers = Path(answers)

    def ask(self, instructions: Sequence[str]) -> Iterator[tuple[int, str]]:
        """Raw answers as they come, with the position of their instruction."""
        raise NotImplementedError

    def write(self, requests: Sequence[Request]) -> list[str | None]:
        """A cleaned text for each request; a refused answer is asked for once more, then None.

        Raises TeacherError if the teacher cannot be asked, DataError for a damaged file of answers.
        """
        known = self.known()
        if known and not any(self.key(r.instruction) in known for r in requests):
            say(f"{self.answers}: its {len(known):,} answers are to other prompts or of other models than {self.name}")
        raw = self._answers([r.instruction for r in requests])
        texts = [clean(answer) for answer in raw]
        refused = [i for i, text in enumerate(texts) if text is None]
        # Greedy decoding would say the same again, so the second instruction is another one.
        for i, answer in zip(refused, self._answers([requests[i].instruction + AGAIN for i in refused])):
            texts[i] = clean(answer)
        return texts

    def known(self) -> dict[str, str]:
        """Answers on file, by key."""
        return read_answers(self.answers)[0]

    def key(self, instruction: str) -> str:
        return hashlib.sha256(json.dumps([self.model, self.max_tokens, instruction]).encode()).hexdigest()

    def _answers(self, instructions: Sequence[str]) -> list[str]:
        if not instructions:
            return []
        with ExitStack() as stack:
            with _writing(self.answers):
                self.answers.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(f"{self.answers}.lock"))
            known, whole = read_answers(self.answers)
            missing = [text for text in dict.fromkeys(instructions) if self.key(text) not in known]
            if missing:
                _mend(self.answers, whole)
                for i, text in progress(stack.enter_context(closing(self.ask(missing))), self.name, total=len(missing)):
                    known[self.key(missing[i])] = text = _encodable(text)
                    _append(self.answers, {"key": self.key(missing[i]), "text": text})
        return [known[self.key(text)] for text in instructions]


def read_answers(path: Path) -> tuple[dict[str, str], int]:
    """Answers by key, and the bytes of whole lines: the last line may be torn, and is then ignored.

    Raises DataError for any other line that is no answer, and for two that differ.
    """
    if path.exists() and not path.is_file():
        raise DataError(path, None, "is no file, and a teacher's answers are kept there", "Move it away")
    try:
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    except OSError as error:
        raise DataError(path, None, f"cannot be read: {error.strerror}", "See who may read it") from None
    known: dict[str, str] = {}
    whole = 0
    for n, line in enumerate(lines, 1):
        if line.strip():
            try:
                record = json.loads(line)
                key, text = record["key"], record["text"]
                if not (isinstance(key, str) and isinstance(text, str)):
                    raise TypeError
            except (ValueError, LookupError, TypeError, RecursionError):
                if n == len(lines):
                    break
                remedy = "Delete the line; it will be asked for again"
                raise DataError(path, n, "is no answer of a teacher", remedy) from None
            text = _encodable(text)
            if known.setdefault(key, text) != text:
                raise DataError(path, n, "answers what a line before it answers otherwise", "Delete one of the two")
        whole += len(line)
    return known, whole


def _mend(path: Path, whole: int) -> None:
    """Cut a torn line off, and end the last whole one where a hand left it open."""
    with _writing(path), open(path, "ab+") as file:
        file.truncate(whole)
        file.seek(max(0, whole - 1))
        if file.read() not in (b"", b"\n"):
            file.write(b"\n")


def _append(path: Path, answer: dict[str, str]) -> None:
    with _writing(path), open(path, "ab") as file:
        file.write(json.dumps(answer, ensure_ascii=False).encode() + b"\n")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TeacherError(
            f"{path}: answers cannot be kept there: {error.strerror}. Make room, or see who may write there; "
            "answers so far are kept, run again to go on"
        ) from None


def _encodable(text: str) -> str:
    """A text that UTF-8 can hold: JSON can escape halves of characters."""
    return text.encode("utf-8", "replace").decode()


def clean(answer: str) -> str | None:
    """An answer as one paragraph without quotes around it, or None if it is empty or shorter than three words.

    Thoughts are dropped, a list becomes its points between commas, and a sentence that the token limit cut off goes
    if one before it is whole.
    """
    lines = [line.strip() for line in THINKING.sub("", answer).replace("**", "").splitlines() if line.strip()]
    points = [POINT.sub("", line).rstrip(" .,;") for line in lines if POINT.match(line)]
    text = ", ".join(points) + "." if len(points) > 1 else " ".join(lines)
    text = re.sub(r"^answer:\s*", "", CONTROL.sub("", " ".join(text.split())), flags=re.IGNORECASE)
    if len(text) > 1 and QUOTES.get(text[0]) == text[-1] and not set(text[1:-1]) & {'"', "“", text[0]}:
        text = text[1:-1].strip()
    sentences = SENTENCE_END.split(text)
    if not re.search(r"[.!?][\"'”’)]*$", text) and len(" ".join(sentences[:-1]).split()) >= MIN_WORDS:
        text = " ".join(sentences[:-1])
    return text if len(re.findall(r"\w+", text)) >= MIN_WORDS else None


# ---- dry run ----


class DryRun:
    """Stands in for a teacher: takes down what would be asked."""

    def __init__(self, name: str):
        self.name, self.requests = name, []

    def write(self, requests: Sequence[Request]) -> list[str]:
        self.requests = list(requests)
        return [r.instruction for r in requests]


def dry_run(
    requests: Sequence[Request], teacher: Teacher | str = "template", count: Callable[[str], int] | None = None
) -> str:
    """What asking would take, in words: prompts, tokens, and an instruction of a task about one film and about two.

    Args:
        count: tokens of a text; None: 1.3 for each word.
    """
    asked = list(dict.fromkeys(r.instruction for r in requests))
    todo = asked
    if isinstance(teacher, LanguageModelTeacher):
        known = teacher.known()
        todo = [text for text in asked if teacher.key(text) not in known]
    tokens = sum(map(count, todo)) if count else round(WORD_TOKENS * sum(len(text.split()) for text in todo))
    limit = getattr(teacher, "max_tokens", MAX_TOKENS)
    by = "counted by the tokenizer" if count else f"estimated as words x {WORD_TOKENS}"
    name = getattr(teacher, "name", teacher)
    lines = ["the template asks nobody; this is what a language model would be asked"] if name == "template" else []
    lines += [
        f"teacher {name}: {len(requests):,} rows of {len({r.task for r in requests})} tasks, {len(asked):,} prompts",
        f"{len(asked) - len(todo):,} answered already, {len(todo):,} to ask; a refused answer is asked for twice",
        f"{tokens:,} tokens to read, {by}; at most {limit * len(todo):,} to write, {limit} for an answer",
    ]
    examples = {r.instruction.count("\n- ") > 1: r for r in reversed(requests)}
    for two in sorted(examples):
        lines.append(f"\n--- {examples[two].task} ---\n{examples[two].instruction}")
    return "\n".join(lines)


def token_counter(name: str) -> Callable[[str], int]:
    """Tokens of a text by a tokenizer, given by folder or name; what a chat template adds is not counted.

    Raises TeacherError if there is no such tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")[:120]
        raise TeacherError(f"no tokenizer {name!r}: {reason}. Give the folder of a model") from None
    return lambda text: len(tokenizer(text)["input_ids"])
