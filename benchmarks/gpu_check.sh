#!/usr/bin/env bash
# On a machine with a CUDA GPU: all that it has to show, into one JSON file (benchmarks/gpu_check.py).
#
#   benchmarks/gpu_check.sh [OUT.json] [PROFILE]   (default: benchmarks/gpu_check.json, h200; at most ten minutes, safe to cut off)
#
# Needs torch >= 2.6 with CUDA (which brings Triton; fbgemm is used where it goes with it, and not needed), and gymnasium, lightgbm,
# numba, numpy, onnx, onnxruntime, pyarrow, PyYAML, safetensors, scipy. Where no package registry can be reached, carry them: wheels in
# .wheels/ are put on the path, and fbgemm's operators from .fbgemm/fbgemm_cuda.tgz.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-benchmarks/gpu_check.json}
profile=${2:-h200}
libraries=$(mktemp -d)
trap 'rm -rf "$libraries"' EXIT
if [ -f .fbgemm/fbgemm_cuda.tgz ]; then tar xzf .fbgemm/fbgemm_cuda.tgz -C "$libraries"; fi
for wheel in .wheels/*.whl; do
  if [ -f "$wheel" ]; then python3 -m zipfile -e "$wheel" "$libraries"; fi
done
export PYTHONPATH="$libraries:.${PYTHONPATH:+:$PYTHONPATH}"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
timeout 590 python3 -m benchmarks.gpu_check --out "$out" --profile "$profile"
