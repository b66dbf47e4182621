"""A whole study, handled roughly: killed, its files broken, its disk full, started twice, fed hostile titles.

python tests/rough/run.py                  all parts, some 50 minutes on two cores; writes RESULT.md beside this file
python tests/rough/run.py kills flips      some parts; the reference that they are compared with is made first

Everything happens in a copy of the checkout with an odd name; nothing of the checkout is touched but RESULT.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
from flip import flipped
from markup import HOSTILE, Page

ROOT = Path(__file__).resolve().parents[2]
MARK = "ILM_ROUGH"  # in the environment of a study and all that it starts: kernels leave their parent's group
LEAST_BYTES, MOST_SAID = 6 << 20, 3  # of a disk that is full; lines that a refusal may take


@dataclass(frozen=True)
class Outcome:
    """What a part came to: how many of how many cases ended well, and what is worth telling."""

    part: str
    well: int
    of: int
    told: str


class Study:
    """A copy of the checkout, and the runs folder it writes to."""

    def __init__(self, home: Path, runs: str = "runs"):
        self.home, self.runs = home, home / runs

    def start(self, profile: str = "toy", *options: str, **env: str) -> subprocess.Popen:
        """`make study`, as a process of its own."""
        command = [sys.executable, "-m", "ilm_lib.study", profile, "--cores", "2", *options]
        return subprocess.Popen(
            command,
            cwd=self.home,
            env=self.environment(**env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def environment(self, **env: str) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("ILM_")}
        mine = {
            "PYTHONPATH": str(self.home),
            "ILM_RUNS_DIR": str(self.runs),
            MARK: str(self.runs),
            "HF_HUB_OFFLINE": "1",
        }
        return clean | mine | {"ILM_DATA_DIR": str(self.home / "data")} | env

    def run(self, profile: str = "toy", *options: str, **env: str) -> tuple[int, str]:
        """`make study` to its end: its status and all that it said."""
        process = self.start(profile, *options, **env)
        said, _ = process.communicate()
        return process.returncode, said

    def processes(self) -> list[psutil.Process]:
        """All processes that work for this runs folder."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(self.runs):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill(self) -> None:
        """End all of them at once, as a power cut would."""
        while alive := self.processes():
            for process in alive:
                try:
                    process.send_signal(signal.SIGKILL)
                except psutil.Error:
                    continue
            psutil.wait_procs(alive, timeout=5)

    def contents(self, profile: str = "toy") -> dict[str, str]:
        """Digest of everything that a run leaves for others: stages, models, results, claims."""
        base = self.runs / profile
        files = [base / "report" / "results.csv", base / "report" / "claims.csv"]
        for manifest in sorted(base.glob("*/*/manifest.json")):
            files += [manifest.parent / name for name in json.loads(manifest.read_text()).get("files", ())]
        files += [p for p in base.glob("models/*/**/*") if p.is_file() and p.name not in ("README.md", "manifest.json")]
        files = [p for p in files if p.is_file()]
        return {str(p.relative_to(base)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(set(files))}


# ------------------------------------------------------------ the parts


def reference(study: Study) -> Outcome:
    """A run that nobody disturbs, but for a second one that is started beside it and has to say that it may not."""
    first = study.start()
    time.sleep(8)
    code, said = study.run()
    refused = code == 1 and len(said.splitlines()) <= MOST_SAID and "Traceback" not in said
    out, _ = first.communicate()
    finished = first.returncode == 0 and "✓ done" in out
    if not finished:
        raise SystemExit(f"the reference did not run:\n{out[-3000:]}")
    return Outcome("two at once", int(refused), 1, said.splitlines()[-1] if said else "nothing was said")


def kills(study: Study, wanted: Study, count: int) -> Outcome:
    """SIGKILL for everything at random moments, again and again, until the study has been killed `count` times."""
    rng, done, rounds = random.Random(0), 0, 0
    well, expected = 0, wanted.contents()
    while done < count:
        rounds += 1
        shutil.rmtree(study.runs, ignore_errors=True)
        here = 0
        while done < count:
            process = study.start()
            try:
                process.communicate(timeout=rng.uniform(4, 28))
                break  # it came to its end before
            except subprocess.TimeoutExpired:
                study.kill()
                process.communicate()
                done, here = done + 1, here + 1
                print(f"  killed {done} of {count}", flush=True)
        code, said = study.run()
        if code == 0 and study.contents() == expected:
            well += here
        else:
            print(said[-2000:], _differences(study.contents(), expected), sep="\n")
    return Outcome("killed", well, count, f"in {rounds} round(s); afterwards every file is as in the reference")


def flips(study: Study, wanted: Study) -> Outcome:
    """A byte of every file is changed: it has to be refused by name, or put right by the next run."""
    shutil.rmtree(study.runs, ignore_errors=True)
    shutil.copytree(wanted.runs, study.runs)
    base, rng = study.runs / "toy", random.Random(1)
    folders = sorted({p.parent for p in base.glob("*/*/manifest.json")})
    quick = [p for folder in folders for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size]
    answers = _ask(study, quick)
    bad = [f"{p.relative_to(base)}: {a}" for p, a in zip(quick, answers) if a not in ("refused", "same")]
    expected = wanted.contents()
    slow = [*sorted(base.glob("notebooks/*"))[-3:], *sorted(base.glob("parameters/*"))[:2]]
    slow += [base / name for name in ("report/index.html", "report/results.csv", "study.json", "report.json")]
    for path in slow:
        before = path.read_bytes()
        path.write_bytes(flipped(before, rng))
        code, said = study.run()
        right = code == 0 and study.contents() == expected
        if not (right or (code == 1 and path.name in said)):
            bad.append(f"{path.relative_to(base)}: not seen")
        print(f"  {path.name}: {'put right' if right else 'refused' if code else 'NOT SEEN'}", flush=True)
    of = len(quick) + len(slow)
    print(*bad, sep="\n")
    return Outcome(
        "a flipped byte", of - len(bad), of, "; ".join(bad[:3]) or "refused by name, or put right by the next run"
    )


def _ask(study: Study, files: list[Path]) -> list[str]:
    """How the library takes each of the files with a byte changed."""
    command = [sys.executable, str(Path(__file__).with_name("flip.py")), str(study.runs / "toy")]
    names, env = json.dumps(list(map(str, files))), study.environment()
    done = subprocess.run(command, input=names, cwd=study.home, env=env, capture_output=True, text=True)
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('"')]
    if len(answers) != len(files):
        raise SystemExit(done.stderr[-3000:])
    return answers


def full(study: Study, wanted: Study) -> Outcome:
    """The disk is full, again and again, 5 MB later each time; then read only; in the end the study must be whole."""
    inside = [sys.executable, __file__, "--inside", str(study.home), str(wanted.home)]
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True)
    if probe.returncode:
        return Outcome("disk full, read only", 0, 0, "left out: this machine lends no file system of one's own")
    done = subprocess.run(["unshare", "-rm", *inside], stdout=subprocess.PIPE, text=True)
    *told, last = done.stdout.splitlines() or [""]
    print(*told, sep="\n")
    return Outcome("disk full, read only", **json.loads(last))


def _inside(study: Study, wanted: Study) -> None:
    """`full`, where a file system may be mounted."""
    shutil.rmtree(study.runs, ignore_errors=True)
    study.runs.mkdir()
    size, well, of, stops = LEAST_BYTES, 0, 0, 0
    mount = lambda options: subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(study.runs)], check=True)
    mount(["-o", f"size={size}"])
    while True:
        code, said = study.run()
        if code == 0:
            break
        of, stops = of + 1, stops + 1
        lines = [line for line in said.splitlines() if "✗" in line]  # two notebooks may meet it, then the study ends
        plain = "No space left" in said and "Traceback" not in said and len(lines) <= MOST_SAID
        well += plain
        print(f"  {size >> 20} MB: {'said plainly' if plain else said[-1500:]}")
        size += 5 << 20
        mount(["-o", f"remount,size={size}"])
        if stops > 40:
            break
    same = study.contents() == wanted.contents()
    mount(["-o", "remount,ro"])
    code, said = study.run()
    readonly = "Traceback" not in said and len(said.splitlines()) <= MOST_SAID + 1
    print(f"  read only: {said.strip()[-300:]}")
    told = f"stopped {stops} times, then {'as the reference' if same else 'NOT as the reference'}"
    print(json.dumps({"well": well + same + readonly, "of": of + 2, "told": told}))


def hostile(study: Study, wanted: Study) -> Outcome:
    """Titles, genres and plots that look like markup, templates, commands and special tokens, through a whole study."""
    rng, items, users = random.Random(2), 140, 150
    _plays(study.home / "plays.csv", rng, items, users)
    with open(study.home / "texts.jsonl", "w", encoding="utf-8") as file:
        for i in range(items):
            bad = HOSTILE[i % len(HOSTILE)]
            record = {
                "id": f"i{i}",
                "title": f"{bad} {i}" if i % 2 else bad,
                "genres": [bad[:30], "Drama"],
                "overview": bad * 2,
            }
            file.write(json.dumps(record) + "\n")
    command = [sys.executable, "-m", "ilm_lib.data", "--csv", "plays.csv", "--texts", "texts.jsonl", "Hostile"]
    done = subprocess.run(command, cwd=study.home, env=study.environment(), capture_output=True, text=True)
    if done.returncode:
        return Outcome("hostile titles", 0, 1, done.stderr.strip()[-300:])
    code, said = study.run("hostile")
    pages = sorted((study.runs / "hostile" / "report").glob("*.html"))
    ours = {script for page in (wanted.runs / "toy" / "report").glob("*.html") for script in Page.of(page).scripts}
    bad = [f"{p.name}: {wrong}" for p in pages if (wrong := Page.of(p).wrong(ours))]
    if code or not pages:
        bad.append(f"the study stopped: {said.strip()[-300:]}")
    if (study.home / "here").exists():
        bad.append("a title was run as a command")
    print(*bad, sep="\n")
    of = len(pages) + 1
    return Outcome(
        "hostile titles", of - len(bad), of, "; ".join(bad[:2]) or f"{len(pages)} pages hold no mark-up of a title"
    )


def _plays(path: Path, rng: random.Random, items: int, users: int) -> None:
    rows = [(f"u{u}", f"i{i}", t) for u in range(users) for t, i in enumerate(rng.sample(range(items), 12))]
    pd.DataFrame(rows, columns=["user", "item", "timestamp"]).to_csv(path, index=False)


def machines(study: Study, wanted: Study) -> Outcome:
    """The same study with the newer instructions of the processor switched off: how far do the results move?"""
    shutil.rmtree(study.runs, ignore_errors=True)
    old = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "OPENBLAS_CORETYPE": "Haswell"}
    code, said = study.run(MKL_ENABLE_INSTRUCTIONS="AVX2", **old)
    if code:
        return Outcome("without AVX-512 and AMX", 0, 1, said.strip()[-300:])
    read = lambda s, name: pd.read_csv(s.runs / "toy" / "report" / name, keep_default_na=False)
    a, b = read(wanted, "results.csv"), read(study, "results.csv")
    both = a.merge(b, on=[c for c in a.columns if c != "value"], how="outer", indicator=True)
    moved = both[both["value_x"] != both["value_y"]]
    rates = moved[moved["metric"].str.contains("@")].eval("abs(value_x - value_y)")
    verdicts = read(wanted, "claims.csv")["verdict"] == read(study, "claims.csv")["verdict"]
    told = f"{len(moved)} of {len(both)} results move, rates by {rates.mean():.4f}, at most {rates.max():.4f}"
    well = bool((both["_merge"] == "both").all() and verdicts.all())
    return Outcome(
        "without AVX-512 and AMX", int(well), 1, f"{told}; {verdicts.sum()} of {len(verdicts)} verdicts stay"
    )


# ------------------------------------------------------------ around them


def _differences(a: dict[str, str], b: dict[str, str]) -> list[str]:
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))[:10]


@contextmanager
def copy_of_checkout(where: Path) -> Iterator[Path]:
    """A copy with blanks, quotes, a dollar and an umlaut in its name."""
    home = where / "a study, $HOME 'of' Jürgen"
    home.mkdir(parents=True)
    for name in ("ilm_lib", "notebooks", "params", "bench", "reports/speed"):
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "pyproject.toml"):
        shutil.copy(ROOT / name, home / name)
    yield home


def write_result(outcomes: list[Outcome], path: Path) -> None:
    """The table of the last run."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    lines = [
        f"# Handled roughly: {time.strftime('%Y-%m-%d')}, commit {commit}",
        "",
        "`make rough` on the toy study, two cores.",
        "",
    ]
    lines += ["| what was done to it | ended well | of | |", "| --- | --- | --- | --- |"]
    lines += [f"| {o.part} | {o.well} | {o.of} | {o.told.replace('|', '/')} |" for o in outcomes]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    parts: dict[str, Callable[[Study, Study, int], Outcome]] = {
        "kills": kills, "flips": lambda s, w, n: flips(s, w), "full": lambda s, w, n: full(s, w),
        "hostile": lambda s, w, n: hostile(s, w), "machines": lambda s, w, n: machines(s, w),
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="(default: all)")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--inside", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        _inside(Study(args.inside[0], "full"), Study(args.inside[1], "reference"))
        return 0
    outcomes = []
    with tempfile.TemporaryDirectory() as folder, copy_of_checkout(Path(folder)) as home:
        wanted = Study(home, "reference")
        try:
            outcomes.append(reference(wanted))
            print(outcomes[-1], flush=True)
            for name in args.parts or parts:
                print(f"▶ {name}", flush=True)
                outcomes.append(parts[name](Study(home, name), wanted, args.kills))
                print(outcomes[-1], flush=True)
        finally:
            for name in ("reference", *parts):
                Study(home, name).kill()
    if not args.parts:
        write_result(outcomes, Path(__file__).with_name("RESULT.md"))
    return 0 if all(o.well == o.of for o in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
