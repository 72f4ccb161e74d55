#!/usr/bin/env bash
# Checks and times memlaw on a GPU, in under eight minutes, and writes one JSON file:
#
#     benchmarks/gpu/run.sh [--out FILE] [--only SECTION,SECTION] [--small]
#
# Needs Python 3.12 with torch, triton, transformers, accelerate and peft, and no network. What else memlaw needs is
# installed for this run alone from the wheels in .whl, if there are any. Without a GPU everything runs small.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
PYTHON=${PYTHON:-python3}
mkdir "$scratch/site"
if compgen -G '.whl/*.whl' > /dev/null; then
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
        --upgrade --target "$scratch/site" .whl/*.whl || echo "The wheels in .whl cannot be installed." >&2
fi
export PYTHONPATH="$PWD/src:$PWD/benchmarks:$scratch/site${PYTHONPATH:+:$PYTHONPATH}"
export MEMLAW_CACHE="$scratch/cache" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
"$PYTHON" -m gpu.run "$@"
