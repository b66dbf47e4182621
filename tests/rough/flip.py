"""Changes a bit in each of the files that it is told, and prints how the library takes it, one JSON text a line.

python flip.py runs/toy < list of paths in JSON
"""

import json
import random
import sys
from pathlib import Path

from ilm_lib import ILM, Item, User
from ilm_lib.errors import Refusal
from ilm_lib.files import _sha256
from ilm_lib.study.artifacts import Artifact


def flipped(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def look(base: Path, path: Path) -> list[int] | None:
    """What a model recommends, or nothing for a stage; a Refusal where its folder is not believed."""
    stage, key, *_ = path.relative_to(base).parts
    if stage != "models":
        Artifact(stage, key, base / stage / key).verify()
        return None
    ilm = ILM.from_pretrained(base / stage / key)
    return [r.item.row for r in ilm.recommend(user=User(0), history=[Item(1)])]


def taken(base: Path, path: Path, rng: random.Random) -> str:
    """How a changed bit is taken: "refused", "same" where nothing depends on it, or what went wrong."""
    sound, before = look(base, path), path.read_bytes()
    path.write_bytes(flipped(before, rng))
    _sha256.cache_clear()  # as in a new process
    try:
        bystander = path.name in ("README.md", "manifest.json")
        return "same" if look(base, path) == sound and bystander else "NOT SEEN"
    except Refusal as error:
        return "refused" if path.name in str(error) or path.name == "manifest.json" else f"not named: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        path.write_bytes(before)
        _sha256.cache_clear()


if __name__ == "__main__":
    rng = random.Random(1)
    for name in json.load(sys.stdin):
        print(json.dumps(taken(Path(sys.argv[1]), Path(name), rng)), flush=True)
