#!/usr/bin/env bash
# The whole workflow on a real model, in commands that a user would type: `make real`.
#
#   scripts/real_chain.sh MODEL OUT
#
# MODEL is what --model takes: a directory, a GGUF file, or a Hub id such as HuggingFaceTB/SmolLM2-135M-Instruct. The
# sizes of the probe suit a model of 135 million parameters on two cores. A second run into OUT reuses finished cells.
set -euo pipefail
model=$1 out=$2
facts=examples/facts.jsonl
mkdir -p "$out"

run() {
  printf '\n$ memlaw %s\n' "$*"
  memlaw "$@"
}

run check "$facts" --model "$model"
run probe task:random:tokens=128,seed=0 --model "$model" --ranks 1,2,4,8 --lengths 16,32,64,128 --steps 60 \
  --out "$out/random"
run fit "$out/random" --save "$out/law.json"
run plan "$facts" --model "$model" --law "$out/law.json"
memlaw plan "$facts" --model "$model" --law "$out/law.json" --json >"$out/plan.json" # for the report
rm -rf "$out/adapter"                                                             # `train` overwrites no adapter
run train "$facts" --model "$model" --rank 8 --out "$out/adapter"
run recall "$facts" --model "$model" --adapter "$out/adapter" --decode --side-effects --out "$out/recall.json"
run report "$out" --out "$out/report.html"
printf '\nThe whole chain took %d minutes and %d seconds.\n' $((SECONDS / 60)) $((SECONDS % 60))
