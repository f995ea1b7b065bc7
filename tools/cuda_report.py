#!/usr/bin/env python3
"""Print what ptxas said about each CUDA kernel of the last build; fail if one spills registers.

A kernel that spills keeps part of its registers in memory, which is slow and easy to miss.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<architecture>\w+)'.*?"
    r"(?P<spill_stores>\d+) bytes spill stores, (?P<spill_loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


class Kernel(NamedTuple):
    """One kernel for one architecture; sizes in bytes."""

    name: str
    architecture: str
    registers: int
    shared: int
    spill_stores: int
    spill_loads: int


def read_log(text: str) -> list[Kernel]:
    """Return the kernels in one file's nvcc messages (`--ptxas-options=-v`)."""
    kernels = []
    for entry in ENTRY.finditer(text):
        shared = re.search(r"(\d+) bytes smem", entry["rest"])
        kernels.append(
            Kernel(
                name=entry["kernel"],
                architecture=entry["architecture"],
                registers=int(entry["registers"]),
                shared=int(shared.group(1)) if shared else 0,
                spill_stores=int(entry["spill_stores"]),
                spill_loads=int(entry["spill_loads"]),
            )
        )
    return kernels


def demangle(names: list[str]) -> list[str]:
    """Return the names as C++ writes them, where c++filt is there to tell."""
    if shutil.which("c++filt") is None:
        return names
    result = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return result.stdout.splitlines()


def short_name(demangled: str) -> str:
    """Drop return type, anonymous namespaces and the parameter list."""
    name = demangled.replace("(anonymous namespace)::", "").removeprefix("void ")
    return re.sub(r"\((?!.*>\().*\)$", "", name)


def main() -> int:
    """Print the table for csrc/'s kernels; return 1 if one spills or is missing."""
    sources = sorted((ROOT / "csrc").glob("**/*.cu"))
    logs = [
        ROOT / "build" / "objects" / source.relative_to(ROOT).with_suffix(".o.log")
        for source in sources
    ]
    missing = [str(log.relative_to(ROOT)) for log in logs if not log.is_file()]
    if missing:
        print(f"cuda_report: not compiled with CUDA here: no {', '.join(missing)}")
        return 1
    kernels = [kernel for log in logs for kernel in read_log(log.read_text())]
    kernels = [kernel for kernel in kernels if "EmptyKernel" not in kernel.name]
    if not kernels:
        print("cuda_report: the build's logs name no kernel")
        return 1
    names = demangle([kernel.name for kernel in kernels])
    print(f"{'arch':>6} {'registers':>9} {'shared':>7} {'spills':>7}  kernel")
    for kernel, name in zip(kernels, names, strict=True):
        spills = kernel.spill_stores + kernel.spill_loads
        row = f"{kernel.architecture:>6} {kernel.registers:>9} {kernel.shared:>7} {spills:>7}"
        print(f"{row}  {short_name(name)[:100]}")
    spilling = sum(kernel.spill_stores + kernel.spill_loads > 0 for kernel in kernels)
    print(f"cuda_report: {len(kernels)} kernels, {spilling} spill registers")
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
