"""What a profile costs before it is run: weights, memory, FLOPs and hours of every training of the paper.

python -m ilm_lib.plan --profile paper-beauty --memory 80 --utilisation 40

The formulas are in `costs`. Batches are those that training draws, where the data are at hand; else all histories count
as full. Hours are FLOPs over the peak of the chips (dense bfloat16, from the makers' data sheets) times the utilisation
given. A plan is that of the method ILM and of one seed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pandas as pd
from torch._subclasses.fake_tensor import FakeTensorMode

from ilm_lib.arguments import BadArgument, Parser, whole
from ilm_lib.costs import Memory, Target, count, count_bare, memory
from ilm_lib.errors import Refusal
from ilm_lib.profiles import load_params
from ilm_lib.settings import Params
from ilm_lib.trainings import Training, Trainings, new_qformer, prompts

#: Chips, and the peak of one in FLOP/s.
HARDWARE = {"H100": (1, 989e12), "16 TPU v5e": (16, 197e12)}


@dataclass(frozen=True)
class Stage:
    """What one stage costs.

    Attributes:
        trained, frozen: weights.
        flops: of a step.
        memory: of a step; None where no training takes place.
    """

    name: str
    steps: int
    trained: int
    frozen: int
    flops: float
    memory: Memory | None


@dataclass(frozen=True)
class Plan:
    """Stages in their order.

    Attributes:
        qformer, llm: all weights, and those without embeddings of tokens (`costs.count_bare`).
        notes: what was assumed, and what of the profile is in no plan.
    """

    stages: list[Stage]
    qformer: tuple[int, int]
    llm: tuple[int, int]
    notes: list[str]

    @property
    def peak(self) -> int:
        """Bytes that the largest training takes."""
        return max(stage.memory.peak for stage in self.stages if stage.memory is not None)


def plan(params: Params, target: Target = "gpu") -> Plan:
    """Plan a profile, for a GPU or for a CPU like this machine's.

    Raises Refusal where a named LLM is not at hand.
    """
    tasks, notes = prompts(params)
    of, e = Trainings(params, tasks, target), params.evaluation
    ours, beam = params.backbone.pretrained is None, e.enabled and "beam" in e.readouts
    found = [of.backbone] * (ours and (e.enabled or params.chat.enabled))
    found += [of.phase1] * (e.enabled or params.chat.enabled) + [of.phase2] * beam
    found += [of.elm_backbone] * (ours and params.elm24.enabled)
    found += [of.elm_phase1, of.elm_phase2] * params.elm24.enabled
    stages = [_stage(training(), target) for training in found]
    with FakeTensorMode():
        qformer, llm = new_qformer(params), of.llm()
    if beam:
        stages.append(Stage("evaluation", 1, 0, 0, of.evaluation_flops(), None))
    left_out = ["SASRec"] * e.enabled + ["the score read-out"] * (e.enabled and "score" in e.readouts)
    left_out += ["dialogues"] * params.chat.enabled + ["writing of ELM texts"] * params.elm24.enabled
    return Plan(
        stages,
        (count(qformer), count_bare(qformer)),
        (count(llm), count_bare(llm)),
        [*notes, f"not planned: {', '.join(left_out)}"],
    )


def _stage(t: Training, target: Target) -> Stage:
    held = memory(t.make, t.loss, t.batch, t.optim, keep_best=t.keep_best, target=target)
    return Stage(t.name, t.optim.steps, t.trained, t.frozen, t.flops, held)


# ---------------------------------------------------------------- the command


def hours(flops: float, hardware: str, utilisation: float) -> float:
    """Hours of so many FLOPs on a key of `HARDWARE`, at a utilisation from 0 to 1."""
    chips, peak = HARDWARE[hardware]
    return flops / (chips * peak * utilisation) / 3600


def table(found: Plan, utilisation: float) -> pd.DataFrame:
    """A row a stage: weights in millions, memory in GiB, FLOPs in 10^15, hours."""
    gib = lambda size: "" if size is None else f"{size / 2**30:.2f}"
    parts = ("weights", "gradients", "optimizer", "activations", "peak")
    rows = [
        {
            "stage": s.name,
            "steps": f"{s.steps:,}",
            "trained M": f"{s.trained / 1e6:.1f}" if s.memory else "",
            "frozen M": f"{s.frozen / 1e6:.1f}" if s.memory else "",
            **{part: gib(s.memory and getattr(s.memory, part)) for part in parts},
            "PFLOP": f"{s.steps * s.flops / 1e15:,.3g}",
            **{f"h {name}": f"{hours(s.steps * s.flops, name, utilisation):.2g}" for name in HARDWARE},
        }
        for s in found.stages
    ]
    return pd.DataFrame(rows)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, or 1 after a message on stderr, 2 where it is about the arguments."""
    parser = Parser(prog="python -m ilm_lib.plan", description=__doc__)
    parser.add_argument("--profile", default="toy", help="of params/, or a YAML file (default: toy)")
    parser.add_argument("--memory", type=whole(1_000_000), default=80, help="GiB of the device (default: 80)")
    parser.add_argument("--utilisation", type=whole(100), default=40, help="per cent of the peak (default: 40)")
    parser.add_argument("--on", choices=("gpu", "cpu"), default="gpu", help="what trains, for memory (default: gpu)")
    try:
        args = parser.parse_args(arguments)
        print(said(args.profile, args.memory, args.utilisation / 100, args.on))
    except Refusal as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadArgument) else 1
    return 0


def said(profile: str, gib: int, utilisation: float, target: Target) -> str:
    """The plan of a profile in words and a table."""
    found = plan(load_params(profile), target)
    millions = lambda both: f"{both[0] / 1e6:.1f}M weights, {both[1] / 1e6:.1f}M without embeddings of tokens"
    total = sum(stage.steps * stage.flops for stage in found.stages)
    times = ", ".join(f"{hours(total, name, utilisation):.2g} hours of {name}" for name in HARDWARE)
    fits = "fits" if found.peak <= gib * 2**30 else "does not fit; lower batch_size and raise accumulate"
    lines = [
        f"{profile}, on a {target.upper()}. Memory in GiB, hours at {utilisation:.0%} of the peak",
        f"Q-Former: {millions(found.qformer)}. LLM: {millions(found.llm)}",
        table(found, utilisation).to_string(index=False),
        f"in all {times}",
        f"the largest training takes {found.peak / 2**30:.1f} GiB of {gib}: {fits}",
        *found.notes,
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
