# The grid: notebooks x methods x seeds. `make study` calls it through `python -m ilm_lib.study`, which checks before,
# tidies up, and renders the report after; on a cluster with an executor plugin (python -m ilm_lib.study P --executor slurm).
import sys

sys.path.insert(0, workflow.basedir)  # the library of this checkout
from ilm_lib.profiles import load_params, runs_dir
from ilm_lib.study import plan
from ilm_lib.study.notebook_run import command
from ilm_lib.study.scope import by_beam, left_out

PARAMS = load_params(str(config.get("profile", "toy")))
NUMBER = int(config.get("seeds", 1))
SEEDS = list(range(PARAMS.seed, PARAMS.seed + NUMBER))
HALF = max(1, workflow.cores // 2)  # the last two notebooks run side by side
TRAINED = by_beam(PARAMS)
LEFT_OUT = left_out(PARAMS)
plan.prepare(PARAMS, NUMBER)

# What snakemake remembers lies with what it is about, not in the checkout; and no path below has an odd name.
workdir: str((runs_dir() / PARAMS.profile).absolute())


def needs(name, *upstream):
    """What a run depends on: its parameters, whose first line stands for notebook and library, and earlier runs."""
    return [f"parameters/{name}.yaml", *upstream]


rule all:
    input: [f"notebooks/{name}.ipynb" for name in plan.shown(PARAMS, NUMBER)]

rule data:
    input: needs("01_data")
    output: "notebooks/01_data.ipynb"
    shell: command("01_data", "01 data")

rule embeddings:
    input: needs("02_embeddings-seed{seed}", rules.data.output)
    output: "notebooks/02_embeddings-seed{seed}.ipynb"
    shell: command("02_embeddings-seed{seed}", "02 embeddings, seed {seed}")

rule phase1:
    input: needs("03_phase1-seed{seed}", rules.embeddings.output)
    output: "notebooks/03_phase1-seed{seed}.ipynb"
    resources: gpu=1
    shell: command("03_phase1-seed{seed}", "03 phase 1, seed {seed}")

# Pretrains the backbone, which every other method of the seed then shares. It waits for no other notebook.
rule backbone:
    input: needs("04_phase2-OpenP5-R-seed{seed}")
    output: "notebooks/04_phase2-OpenP5-R-seed{seed}.ipynb"
    priority: 2
    resources: gpu=1
    shell: command("04_phase2-OpenP5-R-seed{seed}", "04 backbone, seed {seed}")

rule phase2:
    input:
        needs("04_phase2-{method}-seed{seed}", rules.backbone.output,
              rules.embeddings.output if "03_phase1" in LEFT_OUT else rules.phase1.output)
    output: "notebooks/04_phase2-{method}-seed{seed}.ipynb"
    wildcard_constraints: method="|".join(TRAINED) or "none"
    priority: 1
    resources: gpu=1
    shell: command("04_phase2-{method}-seed{seed}", "04 phase 2 of {method}, seed {seed}")

# What 06 and 07 show, or where a profile has no beam, 10; a profile of OpenP5-R alone trains no encoder.
EARLIER = (rules.backbone, rules.embeddings, *(() if "03_phase1" in LEFT_OUT else (rules.phase1,)))
MODELS = expand(rules.phase2.output, seed=SEEDS, method=TRAINED) or [
    page for rule in EARLIER for page in expand(rule.output, seed=SEEDS)
]

rule elm24:
    input: needs("05_elm24_eval", *expand(rules.embeddings.output, seed=SEEDS))
    output: "notebooks/05_elm24_eval.ipynb"
    resources: gpu=1
    shell: command("05_elm24_eval", "05 ELM-24")

rule openp5:
    input: needs("06_openp5_eval", *MODELS)
    output: "notebooks/06_openp5_eval.ipynb"
    threads: HALF
    priority: 1
    resources: gpu=1
    shell: command("06_openp5_eval", "06 OpenP5 evaluation")

rule ablations:
    input: needs("07_ablations", *MODELS)
    output: "notebooks/07_ablations.ipynb"
    threads: HALF
    priority: 2  # the longer of the two
    resources: gpu=1
    shell: command("07_ablations", "07 ablations")

rule readings:
    input:
        needs("09_readings", *expand(rules.backbone.output, seed=SEEDS[:1]), *expand(rules.embeddings.output, seed=SEEDS))
    output: "notebooks/09_readings.ipynb"
    threads: HALF
    resources: gpu=1
    shell: command("09_readings", "09 readings")

# It shows its rankings beside those of the beam, where there is one.
rule scoring:
    input: needs("10_scoring", *(MODELS if "06_openp5_eval" in LEFT_OUT else rules.openp5.output))
    output: "notebooks/10_scoring.ipynb"
    threads: HALF
    resources: gpu=1
    shell: command("10_scoring", "10 scoring")

# Over the LLM of the ELM tasks, where there is one of ours; a profile of dialogues alone trains no other model.
rule chat:
    input:
        needs("11_chat", *([] if "05_elm24_eval" in LEFT_OUT else rules.elm24.output),
              *(expand(rules.embeddings.output, seed=SEEDS) if "04_phase2" in LEFT_OUT else MODELS))
    output: "notebooks/11_chat.ipynb"
    threads: HALF
    resources: gpu=1
    shell: command("11_chat", "11 conversation")
