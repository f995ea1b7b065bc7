#!/bin/sh
# Runs nvcc and keeps its messages, with what ptxas says about each kernel, beside the object file:
# torch's build code prints them once and only in a verbose build.
object=
previous=
for argument in "$@"; do
    [ "$previous" = -o ] && object=$argument
    previous=$argument
done
"$CUDA_HOME/bin/nvcc" "$@" 2>"$object.log"
status=$?
grep -v '^ptxas info\|^    [0-9]* bytes stack frame' "$object.log" >&2
exit $status
