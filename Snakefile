# The grid: notebooks x methods x seeds, through papermill. `make study` calls it; on a cluster, the same
# file with an executor plugin (snakemake --executor slurm ...).
import os
import sys
from pathlib import Path
from shlex import quote

sys.path.insert(0, workflow.basedir)  # the library of this checkout
from ilm_lib.profiles import load_params, runs_dir
from ilm_lib.study.grid import parameters_file
from ilm_lib.study.scope import left_out

PARAMS = load_params(config.get("profile", "toy"))
SEEDS = list(range(PARAMS.seed, PARAMS.seed + int(config.get("seeds", 1))))
RUNS = runs_dir() / PARAMS.profile / "notebooks"
STAMP = runs_dir() / PARAMS.profile / "report.done"
SETTINGS = str(parameters_file(PARAMS))
CODE = sorted(str(p) for p in Path("ilm_lib").rglob("*.py"))
HALF = max(1, workflow.cores // 2)  # the last two notebooks run side by side
TRAINED = [m for m in PARAMS.methods if m != "OpenP5-R"]
LEFT_OUT = left_out(PARAMS)


def needs(notebook, *upstream):
    """What a run of a notebook depends on: itself, the settings, the library, and earlier notebooks."""
    return {"notebook": f"notebooks/{notebook}.ipynb", "params": SETTINGS, "code": CODE, "upstream": list(upstream)}


def papermill(notebook, job, options="-p seed {wildcards.seed}"):
    """Run a notebook; its own output stays in it, progress goes to the terminal of `make study`."""
    environment = {
        "OMP_NUM_THREADS": "{threads}",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",  # of 1,024: each new shape in bfloat16 would keep its memory for hours
        "PYTHONPATH": quote(str(workflow.basedir)),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    return (f"echo '  ▶ {job}' >&2; "
            "if [ -e /proc/$$/fd/2 ]; then progress=/proc/$$/fd/2; else progress=/dev/tty; fi; "
            f"ILM_PROGRESS=$progress ILM_JOB='{job}' {' '.join(f'{k}={v}' for k, v in environment.items())} "
            f"{quote(sys.executable)} -m papermill notebooks/{notebook}.ipynb {{output:q}} "
            f"-k python3 -f {{input.params:q}} {options} --no-progress-bar --log-level WARNING "
            "2> >(grep -v IPKernelApp >&2)")


def kept(notebook, pages):
    """Pages of a notebook, or none where the profile has no use for it."""
    return [] if notebook in LEFT_OUT else list(pages)


ALL_SEEDS = f"-y 'seeds: {SEEDS}'"


rule all:
    input: STAMP

rule data:
    input: **needs("01_data")
    output: RUNS / "01_data.ipynb"
    shell: papermill("01_data", "01 data", "")

rule embeddings:
    input: **needs("02_embeddings", rules.data.output)
    output: RUNS / "02_embeddings-seed{seed}.ipynb"
    shell: papermill("02_embeddings", "02 embeddings, seed {wildcards.seed}")

rule phase1:
    input: **needs("03_phase1", rules.embeddings.output)
    output: RUNS / "03_phase1-seed{seed}.ipynb"
    resources: gpu=1
    shell: papermill("03_phase1", "03 phase 1, seed {wildcards.seed}")

# Pretrains the backbone, which every other method of the seed then shares. It waits for no other notebook.
rule backbone:
    input: **needs("04_phase2")
    output: RUNS / "04_phase2-OpenP5-R-seed{seed}.ipynb"
    priority: 2
    resources: gpu=1
    shell: papermill("04_phase2", "04 backbone, seed {wildcards.seed}", "-p seed {wildcards.seed} -p method OpenP5-R")

rule phase2:
    input: **needs("04_phase2", rules.backbone.output, kept("03_phase1", rules.phase1.output) or rules.embeddings.output)
    output: RUNS / "04_phase2-{method}-seed{seed}.ipynb"
    wildcard_constraints: method="|".join(TRAINED) or "none"
    priority: 1
    resources: gpu=1
    shell:
        papermill("04_phase2", "04 phase 2 of {wildcards.method}, seed {wildcards.seed}",
                  "-p seed {wildcards.seed} -p method {wildcards.method}")

# What 06 and 07 show; a profile of OpenP5-R alone trains no encoder.
MODELS = expand(rules.phase2.output, seed=SEEDS, method=TRAINED) or [
    page for rule in (rules.backbone, rules.embeddings) for page in expand(rule.output, seed=SEEDS)
]

rule elm24:
    input: **needs("05_elm24_eval", expand(rules.embeddings.output, seed=SEEDS))
    output: RUNS / "05_elm24_eval.ipynb"
    resources: gpu=1
    shell: papermill("05_elm24_eval", "05 ELM-24", ALL_SEEDS)

rule openp5:
    input: **needs("06_openp5_eval", *MODELS)
    output: RUNS / "06_openp5_eval.ipynb"
    threads: HALF
    priority: 1
    resources: gpu=1
    shell: papermill("06_openp5_eval", "06 OpenP5 evaluation", ALL_SEEDS)

rule ablations:
    input: **needs("07_ablations", *MODELS)
    output: RUNS / "07_ablations.ipynb"
    threads: HALF
    priority: 2  # the longer of the two
    resources: gpu=1
    shell: papermill("07_ablations", "07 ablations", ALL_SEEDS)

rule readings:
    input: **needs("09_readings", expand(rules.backbone.output, seed=SEEDS[:1]), expand(rules.embeddings.output, seed=SEEDS))
    output: RUNS / "09_readings.ipynb"
    threads: HALF
    resources: gpu=1
    shell: papermill("09_readings", "09 readings", ALL_SEEDS)

rule report:
    input:
        *kept("06_openp5_eval", rules.openp5.output), *kept("07_ablations", rules.ablations.output),
        *kept("09_readings", rules.readings.output), *kept("05_elm24_eval", rules.elm24.output)
    output: touch(STAMP)
    shell: quote(sys.executable) + " -m ilm_lib.report build " + quote(PARAMS.profile)
