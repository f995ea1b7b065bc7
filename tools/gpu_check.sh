#!/usr/bin/env bash
# One command for a machine with a GPU: build, CUDA tests, sanitizers, benchmarks, a short training
# run. Runs in the environment of $PYTHON; writes into $OUT. Fails if any step does.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-output/gpu_check}
mkdir -p "$OUT"
summary=()
status=0

step() {
    local name=$1 start=$SECONDS
    shift
    echo "== $name"
    if "$@" 2>&1 | tee "$OUT/$name.log"; then
        summary+=("passed  $name ($((SECONDS - start)) s)")
    else
        summary+=("FAILED  $name ($((SECONDS - start)) s): $OUT/$name.log")
        status=1
    fi
}

step build env CORRDET_CUDA=1 "$PYTHON" setup.py build_ext --inplace
step cuda-report "$PYTHON" tools/cuda_report.py
step environment "$PYTHON" -m corrdet.env
step tests "$PYTHON" -m pytest -m cuda
for tool in memcheck racecheck synccheck; do
    if command -v compute-sanitizer >/dev/null; then
        step "$tool" compute-sanitizer --tool "$tool" --error-exitcode 1 --target-processes all \
            "$PYTHON" -m pytest -m cuda -k small
    else
        summary+=("not run $tool: no compute-sanitizer on PATH")
    fi
done
step benchmarks "$PYTHON" -m benchmarks.kernels --device cuda --json "$OUT/kernels.json"
step training-benchmark "$PYTHON" -m benchmarks.training --device cuda --json "$OUT/training.json"
step profile "$PYTHON" -m benchmarks.training --device cuda --profile "$OUT/profile"
step training "$PYTHON" train_net.py --config-file configs/quick/retinanet_concordance.yaml \
    MODEL.DEVICE cuda SOLVER.MAX_ITER 100 OUTPUT_DIR "$OUT/training"

echo "== summary"
printf '%s\n' "${summary[@]}"
exit $status
