#!/bin/sh
# edgeft beside llama.cpp on one GGUF file: bare engines, alternating, so that both meet the same machine.
#
# usage: benches/llama_cpp.sh MODEL.gguf PEER_SCRIPT [THREADS] [ROUNDS] [PROMPT]
#   PEER_SCRIPT  prints one JSON line with prompt_tokens_per_s and decode_tokens_per_s for
#                `MODEL --threads N --prompt 128 --generate 32` (python3 runs it); PROMPT is another 128
#   EDGEFT       the edgeft binary [default: target/release/edgeft]
# Prints a line a round and the ratios of the medians, edgeft / llama.cpp.
set -eu
model=${1:?"usage: $0 MODEL.gguf PEER_SCRIPT [THREADS] [ROUNDS] [PROMPT]"}
peer=${2:?"usage: $0 MODEL.gguf PEER_SCRIPT [THREADS] [ROUNDS] [PROMPT]"}
threads=${3:-1}
rounds=${4:-5}
prompt=${5:-128}
edgeft=${EDGEFT:-target/release/edgeft}
lines=$(mktemp)
trap 'rm -f "$lines"' EXIT
round=0
while [ "$round" -lt "$rounds" ]; do
    round=$((round + 1))
    ours=$("$edgeft" bench "$model" --threads "$threads" --prompt "$prompt" --generate 32 --runs 5 --json | tail -n 1)
    theirs=$(python3 "$peer" "$model" --threads "$threads" --prompt "$prompt" --generate 32 | tail -n 1)
    printf '%s\t%s\n' "$ours" "$theirs" >>"$lines"
done
python3 - "$lines" <<'PYTHON'
import json, statistics, sys

rounds = [[json.loads(side) for side in line.split("\t")] for line in open(sys.argv[1])]
for ours, theirs in rounds:
    bare = ours["engine_only"]
    print("  ".join(f"{name} {bare[key]:.1f} : {theirs[key]:.1f}" for name, key in
                    [("prompt", "prompt_tokens_per_s"), ("decode", "decode_tokens_per_s")]))
ratio = lambda key: statistics.median(o["engine_only"][key] for o, _ in rounds) / statistics.median(t[key] for _, t in rounds)
print(json.dumps({"rounds": len(rounds), "prompt_ratio": round(ratio("prompt_tokens_per_s"), 3),
                  "decode_ratio": round(ratio("decode_tokens_per_s"), 3)}))
PYTHON
