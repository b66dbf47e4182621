#!/usr/bin/env bash
# The fast tests with other versions than those of the lock: the lowest, or the highest, that pyproject.toml allows.
#
#     tests/bounds.sh lowest-direct                       # every package that pyproject.toml names at its lower bound
#     tests/bounds.sh highest --override pins.txt         # what follows the first word is given to `uv pip install`
#
# It takes a fresh environment (some 2 GB, more where PyTorch comes with CUDA), which goes at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
resolution=${1:?say lowest-direct or highest}
shift
environment=$(mktemp -d "${TMPDIR:-/tmp}/ilm-bounds.XXXXXX")
trap 'rm -rf "$environment"' EXIT
"${PYTHON:-python3}" -m venv "$environment"
"$environment/bin/pip" install -q uv
"$environment/bin/uv" pip install -q --python "$environment/bin/python" --resolution "$resolution" "$@" -e '.[study,serve,dev]'
"$environment/bin/uv" pip freeze --python "$environment/bin/python" | grep -v '^-e'
HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 "$environment/bin/python" -m pytest -q -m "not slow"
