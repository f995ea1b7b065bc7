#!/usr/bin/env bash
# Builds the operators' CPU code with AddressSanitizer and UndefinedBehaviorSanitizer, apart from the
# extension that is used, and runs the tests of the operators on it. The first fault found ends the
# run with a report. Needs GCC on Linux. Runs in the environment of $PYTHON; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
FOLDER=build/sanitized

CORRDET_SANITIZE=1 CORRDET_CUDA=0 "$PYTHON" setup.py --quiet build_ext --build-lib "$FOLDER"

# A tree of links in which `corrdet._C` is the library just built. Tests run in it, so that processes
# they start import it too.
for item in corrdet/*; do
    case $item in *.so | */__pycache__) continue ;; esac
    ln -sfn "../../../$item" "$FOLDER/$item"
done
ln -sfn ../../tests "$FOLDER/tests"
ln -sfn ../../pyproject.toml "$FOLDER/pyproject.toml"
cd "$FOLDER"

# Python is not built with sanitizers, so their runtimes have to be loaded before it. libstdc++ is
# loaded with them: AddressSanitizer looks up the function that throws exceptions when it starts.
compiler=${CXX:-c++}
runtimes=()
for name in libasan.so libubsan.so libstdc++.so; do
    runtimes+=("$($compiler -print-file-name=$name)")
done
# detect_leaks=0: Python and torch keep much until the process ends.
export ASAN_OPTIONS=detect_leaks=0
export UBSAN_OPTIONS=print_stacktrace=1
# What is left out runs other code: the emulation of a GPU and torch.compile compile their own, and
# memory is measured of the extension that is used.
selection=(tests/ops --ignore=tests/ops/emulation --ignore=tests/ops/test_extension.py
    -k "not compile and not memory and not emulated")
# pytest would keep the report to itself: the process is gone before it prints what it captured.
LD_PRELOAD="${runtimes[*]}" exec "$PYTHON" -m pytest -q --capture=no "${selection[@]}" "$@"
