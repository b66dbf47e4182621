"""One row of Table 3 at the paper's own sizes: a data set and a method, from OpenP5's files to HR and NDCG.

python -m bench.paper_run --profile paper-beauty --method ILM --minutes 9

It runs the study's own stages: data, embeddings, phase 1, LLM, phase 2, evaluation. With --minutes it stops in time,
with its state saved (exit status 75); the same command goes on from there, until it prints the row beside the paper's
and writes it to `ILM_RUNS_DIR/<profile>/paper_run/`. It downloads nothing; the data are in ILM_DATA_DIR. Where a
machine lacks what factorises (irspack), `--until embeddings` runs elsewhere first, and the runs folder goes along.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from bench.__main__ import device_name
from bench.gpu import PEAK
from ilm_lib import processes
from ilm_lib.arguments import BadArgument, Parser, whole
from ilm_lib.errors import Refusal
from ilm_lib.executed import library_digest
from ilm_lib.files import digest_of, read_json, write_json
from ilm_lib.methods import METHODS, TRAINED
from ilm_lib.paper import PAPER, RANKING_METRICS
from ilm_lib.profiles import load_params, runs_dir
from ilm_lib.progress import say
from ilm_lib.report.card import package_version
from ilm_lib.settings import Params
from ilm_lib.study import inputs, openp5, stages
from ilm_lib.study.artifacts import Artifact, MissingStage
from ilm_lib.study.openp5_results import per_user_metrics
from ilm_lib.train.pause import OutOfTime, is_over, time_limit
from ilm_lib.trainings import Trainings
from ilm_lib.values import MOST

STAGES = ("data", "embeddings", "phase 1", "LLM", "phase 2", "evaluation")
AGAIN = 75  # exit status of a run that stopped in time: EX_TEMPFAIL, what is tried again


def steps(params: Params, method: str, seed: int) -> dict[str, Callable[..., Artifact]]:
    """The stages that a method has, in their order; each takes `build`."""
    m = METHODS[method]
    return {
        "data": lambda build: inputs.data(params, build=build),
        "embeddings": lambda build: inputs.embeddings(params, seed, build=build),
        **({"phase 1": lambda build: stages.phase1(params, seed, method, build=build)} if m.phase1 else {}),
        "LLM": lambda build: stages.backbone(params, seed, build=build),
        **({"phase 2": lambda build: stages.phase2(params, seed, method, build=build)} if m.encoder != "none" else {}),
        "evaluation": lambda build: openp5.evaluation(params, seed, method, build=build),
    }


def run(params: Params, method: str, seed: int, until: str = "evaluation") -> tuple[Artifact, dict[str, float]]:
    """Make what is missing; the last artifact, and the seconds that each stage took in all its runs.

    Raises OutOfTime where a `time_limit` is over.
    """
    made_of = {"params": params.model_dump(mode="json"), "method": method, "seed": seed, "library": library_digest()}
    clock = folder(params) / f"seconds-{digest_of(made_of)[:16]}.json"
    for name, step in steps(params, method, seed).items():
        try:
            artifact = step(build=False)
        except MissingStage:
            if is_over():
                raise OutOfTime(f"stopped before {name}; run it again, and it goes on") from None
            with timed(clock, name):
                artifact = step(build=True)
        spent = seconds(clock)
        say(f"{name}: {artifact.folder} ({spent[name]:.0f} s)" if name in spent else f"{name}: {artifact.folder}")
        if name == until:
            break
    return artifact, seconds(clock)


def folder(params: Params) -> Path:
    """Where a run leaves what it has to say."""
    return runs_dir() / params.profile / "paper_run"


def seconds(clock: Path) -> dict[str, float]:
    return read_json(clock) if clock.is_file() else {}


@contextmanager
def timed(clock: Path, name: str) -> Iterator[None]:
    """Add what a stage takes to what it took before, however it ends."""
    started = time.monotonic()
    try:
        yield
    finally:
        if processes.number() == 0:  # one keeps the time for all
            spent = seconds(clock)
            clock.parent.mkdir(parents=True, exist_ok=True)
            write_json(clock, {**spent, name: spent.get(name, 0.0) + time.monotonic() - started})


def row(params: Params, method: str, evaluation: Artifact) -> pd.DataFrame:
    """Ours and, where the paper has the data set and the method, the paper's: a line a wording, the history kept."""
    lines = []
    for prompt in params.evaluation.prompts:
        ours = per_user_metrics(evaluation, "both", prompt, "kept")
        lines.append({"prompt": prompt, "whose": "ours", **{m: float(ours[m].mean()) for m in RANKING_METRICS}})
        theirs = PAPER[(PAPER.dataset == params.data.name) & (PAPER.method == method) & (PAPER.prompt == prompt)]
        theirs = theirs[theirs.table.isin(["table3", "table4"])].drop_duplicates("metric").set_index("metric")["value"]
        if len(theirs):
            lines.append({"prompt": prompt, "whose": "paper", **theirs[list(RANKING_METRICS)].to_dict()})
    return pd.DataFrame(lines)


def utilisation(params: Params, method: str, spent: dict[str, float], peak: float | None) -> dict[str, float]:
    """Model FLOP utilisation of the trainings, their evaluations and savings included: FLOPs of the plan over the time
    taken and the device's peak. Nothing where the peak is unknown, and nothing of what was made by other runs."""
    if peak is None:
        return {}
    of = Trainings(params, inputs.recommendation_tasks(params), "gpu")
    makes = {"phase 1": of.phase1, "LLM": of.backbone, "phase 2": of.phase2}
    if METHODS[method].encoder != "qformer":
        del makes["phase 2"]  # a plan is that of the Q-Former
    trainings = {name: make() for name, make in makes.items() if name in spent}
    return {name: t.flops * t.optim.steps / spent[name] / peak for name, t in trainings.items()}


def report(params: Params, method: str, seed: int, found: tuple[Artifact, dict[str, float]], peak: float | None) -> str:
    """Write what was found, and say it."""
    evaluation, spent = found
    table, used = row(params, method, evaluation), utilisation(params, method, spent, peak)
    written: dict[str, Any] = {
        "profile": params.profile,
        "method": method,
        "seed": seed,
        "device": device_name(),
        "packages": {name: package_version(name) for name in ("torch", "transformers")},
        "seconds": spent,
        "utilisation": used,
        "row": table.to_dict("records"),
    }
    path = folder(params) / f"{method.lower()}-seed{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, written)
    times = ", ".join(f"{name} {value:.0f} s" for name, value in spent.items())
    shares = ", ".join(f"{name} {share:.1%}" for name, share in used.items())
    return "\n".join(
        [
            f"{method} on {params.data.name}, seed {seed}, both tasks together",
            table.to_string(index=False, float_format=lambda value: f"{value:.4f}"),
            f"{sum(spent.values()) / 60:.1f} minutes: {times}" if spent else "all of it was there",
            f"model FLOP utilisation: {shares}" if used else "model FLOP utilisation: no peak, or nothing was trained",
            f"written to {path}",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, `AGAIN` where it stopped in time, 1 after an error, 2 where that is about the arguments."""
    parser = Parser(prog="python -m bench.paper_run", description=__doc__)
    parser.add_argument("--profile", default="paper-beauty", help="of params/, or a YAML file (default: paper-beauty)")
    parser.add_argument("--method", default="ILM", choices=TRAINED, help="row of Tables 3 and 4 (default: ILM)")
    parser.add_argument("--seed", type=whole(MOST, 0), default=0)
    parser.add_argument("--minutes", type=whole(100_000), help="stop after so many, with the state saved")
    parser.add_argument("--until", choices=STAGES, default="evaluation", help="the last stage to make")
    parser.add_argument("--peak", type=whole(100_000), help="TFLOP/s of the device, where it is not known")
    try:
        args = parser.parse_args(arguments)
        params = load_params(args.profile, seed=args.seed)
        if not params.evaluation.enabled or "beam" not in params.evaluation.readouts:
            raise BadArgument(f"--profile {args.profile}: it has no OpenP5 evaluation by beam search, as Table 3 has")
        params = params.with_(**{"evaluation.histories": ("kept",)})  # the paper's; the other rule is as long again
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
        known = next((value for key, value in PEAK.items() if key in name), None)
        with time_limit(args.minutes and 60 * args.minutes):
            found = run(params, args.method, args.seed, args.until)
        if args.until == "evaluation" and not processes.number():
            print(report(params, args.method, args.seed, found, args.peak * 1e12 if args.peak else known))
    except OutOfTime as error:
        if processes.number() == 0:
            print(error)
        return AGAIN
    except Refusal as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadArgument) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
