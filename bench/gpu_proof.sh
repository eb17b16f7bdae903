#!/usr/bin/env bash
# One real score with NVML on a machine that has an NVIDIA GPU and reaches no package index.
#
#     bench/gpu_proof.sh PACK OUT [options of `agentdyno replay score`]
#     bench/gpu_proof.sh pack out --quick --max-agents 256
#
# PACK is what bench/gpu_pack.py wrote, elsewhere. The machine brings its driver, Python, PyTorch (with torchvision and
# torchaudio) and transformers; nothing is installed. The script checks and unpacks the pack, starts the engine with
# made-up weights of an 8B model, says which power devices are found, scores the packed dataset with idle power before
# and after, verifies and reports the run, and stops what it started. OUT (new, or of an earlier call: its run is then
# continued) gets the run, the engine's log, what the driver says of the GPU, figures.json with the figures that matter,
# and all of it again as proof.tar.gz.00, …, in pieces of 15 MiB. The figures are printed last.
#
# From the environment:
#   PYTHON          the interpreter (python3)
#   WORK            where the pack is unpacked (a folder beside PACK); kept for the next call
#   PORT            of the engine, on loopback (8123)
#   SLO             the service level (aa-shape-2026-07/20)
#   IDLE_S          seconds of idle power before and after (60)
#   START_S         how long the engine may take to start (1200)
#   MODEL           the model's name, as the server lists it (made-up)
#   ENGINE_COMMAND  another server to start, with {port} for its port; the pack then needs no engine
#   ENGINE_OPTIONS  more words for the engine's command line
set -euo pipefail

if [ $# -lt 2 ]; then
  sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"
  exit 2
fi
pack=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
shift 2

python=${PYTHON:-python3}
work=${WORK:-$pack.unpacked}
port=${PORT:-8123}
slo=${SLO:-aa-shape-2026-07/20}
model=${MODEL:-made-up}
url=http://127.0.0.1:$port
engine_pid=

say() { printf '== %s\n' "$*" >&2; }
fail() {
  say "$*"
  exit 3
}
stop() {
  if [ -n "$engine_pid" ]; then
    # The engine is the leader of a session of its own: its workers go with it.
    kill -TERM -- "-$engine_pid" 2>/dev/null || true
    for _ in $(seq 50); do
      kill -0 -- "-$engine_pid" 2>/dev/null || break
      sleep 0.2
    done
    kill -KILL -- "-$engine_pid" 2>/dev/null || true
    engine_pid=
  fi
}
trap stop EXIT
trap 'exit 130' INT TERM HUP

agentdyno() { PYTHONPATH=$work/own/site "$python" -P -m agentdyno "$@"; }
of_pack() { "$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$pack/pack.json" "$1"; }

unpack() { # PART: checks its pieces against pack.json, then unpacks these, once
  local listed
  local -a pieces
  if [ -f "$work/$1/.done" ]; then return; fi
  say "unpacking $1"
  listed=$(
    "$python" - "$pack" "$1" <<'PYTHON'
import hashlib, json, pathlib, sys

pack, part = pathlib.Path(sys.argv[1]), sys.argv[2]
for piece in json.loads((pack / "pack.json").read_text())["pieces"][part]:
    path = pack / pathlib.Path(piece["file"]).name
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != piece["sha256"]:
        sys.exit(f"{path} is missing or not what was packed")
    print(path)
PYTHON
  ) && [ -n "$listed" ] || fail "the pack is not whole: bring its pieces again"
  mapfile -t pieces <<<"$listed"
  [ ! -e "$work/$1" ] || [ -f "$work/$1/.begun" ] || fail "$work/$1 is not of an earlier call: name another folder in WORK"
  rm -rf "${work:?}/$1"
  mkdir -p "$work/$1"
  touch "$work/$1/.begun"
  cat "${pieces[@]}" | tar xJ --no-same-owner -C "$work/$1"
  touch "$work/$1/.done"
}

answers() { # whether a server is there; no proxy of the environment is asked
  "$python" -c 'import sys, urllib.request as u
u.build_opener(u.ProxyHandler({})).open(sys.argv[1] + "/v1/models", timeout=5)' "$url" 2>/dev/null
}

start_engine() {
  local site=$work/engine/site name
  local -a command
  if [ -n "${ENGINE_COMMAND:-}" ]; then
    read -r -a command <<<"${ENGINE_COMMAND//\{port\}/$port}"
    site=${PYTHONPATH:-}
  else
    unpack engine
    name=$(of_pack engine)
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
      fail "PyTorch sees no GPU here: this is as far as a machine without one goes"
    "$python" - "$(of_pack torch)" <<'PYTHON' || fail "the packed $name was built against another PyTorch"
import sys, torch
sys.exit(torch.__version__.split("+")[0] != sys.argv[1])
PYTHON
    case $name in
      vllm)
        command=("$python" -m vllm.entrypoints.openai.api_server --model "$work/own/model" --load-format dummy
          --served-model-name "$model" --host 127.0.0.1 --port "$port" --dtype bfloat16 --max-model-len 131072
          --max-num-seqs 512 --gpu-memory-utilization 0.9 --enable-prompt-tokens-details --enable-auto-tool-choice
          --tool-call-parser hermes)
        ;;
      sglang)
        # Its own attention kernels are a gigabyte and stay at home.
        command=("$python" -m sglang.launch_server --model-path "$work/own/model" --load-format dummy
          --served-model-name "$model" --host 127.0.0.1 --port "$port" --dtype bfloat16 --context-length 131072
          --mem-fraction-static 0.85 --attention-backend triton --sampling-backend pytorch --grammar-backend none
          --enable-metrics --enable-cache-report --tool-call-parser qwen25)
        ;;
      *) fail "the pack holds an engine that this script does not know: $name" ;;
    esac
    # shellcheck disable=SC2206 # words on purpose
    command+=(${ENGINE_OPTIONS:-})
  fi
  case " ${command[*]}" in
    *" --api-key"* | *" --hf-token"*) fail "the engine's command holds a key, and OUT keeps the command: set it by an environment variable" ;;
  esac
  ! answers || fail "something answers at $url already: stop it, or name another PORT"
  say "starting ${command[*]}"
  printf '%q ' "${command[@]}" >"$out/engine-command.txt"
  PYTHONPATH=$site HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 \
    VLLM_USE_FLASHINFER_SAMPLER=0 setsid "${command[@]}" >"$out/engine.log" 2>&1 </dev/null &
  engine_pid=$!
  local end=$((SECONDS + ${START_S:-1200}))
  until answers; do
    kill -0 "$engine_pid" 2>/dev/null || {
      tail -n 20 "$out/engine.log" >&2
      fail "the engine ended while it started: $out/engine.log"
    }
    [ $SECONDS -lt $end ] || fail "the engine did not answer within ${START_S:-1200} s: $out/engine.log"
    sleep 1
  done
}

describe_system() { # drafts system.toml, and adds what this script knows
  [ -f "$out/system.toml" ] && return
  agentdyno replay probe --url "$url" --model "$model" --write "$out/draft.toml" >"$out/probe.txt"
  {
    grep -q '^weights' "$out/draft.toml" || echo 'weights = "made-up"'
    grep -q '^moe' "$out/draft.toml" || echo 'moe = false'
    grep -q '^speculation' "$out/draft.toml" || echo 'speculation = "none"'
    cat "$out/draft.toml"
  } >"$out/system.toml"
  rm "$out/draft.toml"
}

find_power() { # sets `power`: NVML of the GPUs, and of their modules where the driver shows these
  power=(--power nvml)
  agentdyno replay power check --system "$out/system.toml" "${power[@]}" --json >"$out/power-check.json" ||
    fail "the power devices are not those of the system: $out/power-check.json"
  if agentdyno replay power check --system "$out/system.toml" "${power[@]}" --power nvml,scope=module --json \
    >"$out/power-check-module.json" 2>"$out/power-check-module.txt"; then
    power+=(--power nvml,scope=module)
    mv "$out/power-check-module.json" "$out/power-check.json"
  else
    rm -f "$out/power-check-module.json"
    say "no module scope: $(tail -n 1 "$out/power-check-module.txt")"
  fi
}

[ "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" = "$(of_pack python)" ] ||
  fail "the pack is for Python $(of_pack python): name that one in PYTHON"
unpack own
cp "$pack/pack.json" "$out/"
{ command -v nvidia-smi >/dev/null && nvidia-smi -q; } >"$out/nvidia-smi.txt" 2>&1 || say "no nvidia-smi here"
start_engine
describe_system
find_power
resume=()
[ -f "$out/run/run.json" ] && [ ! -f "$out/run/score.json" ] && resume=(--resume)
if [ ! -f "$out/run/score.json" ]; then
  say "scoring"
  # A level that misses is a result too: only what could not be done ends the proof.
  agentdyno replay score "$work/own/dataset" --url "$url" --model "$model" --slo "$slo" --system "$out/system.toml" \
    "${power[@]}" --idle "${IDLE_S:-60}" --out "$out/run" "${resume[@]}" "$@" >"$out/summary.txt" || [ $? -eq 1 ]
  [ -f "$out/run/score.json" ] || fail "there is no score: what was run so far stands in $out/run"
fi
stop
agentdyno replay verify "$out/run" >&2
for form in html md; do agentdyno replay report "$out/run" --format $form >/dev/null; done
"$python" "$work/own/gpu_figures.py" "$out/run" >"$out/figures.json"
rm -f "$out"/proof.tar.gz.*
tar cz -C "$out" --exclude='./proof.tar.gz.*' --exclude='./.proof.*' . | split -b 15M -d - "$out/.proof." # a piece is renamed when all are there
for piece in "$out"/.proof.*; do mv "$piece" "$out/proof.tar.gz.${piece##*.}"; done
cat "$out/figures.json"
