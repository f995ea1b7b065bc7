"""Loads the compiled extension ``corrdet._C``, which registers ``torch.ops.corrdet``, if it can."""

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch  # before the extension, which is linked against its libraries

REBUILD = "build it again with `pip install -e .` in the folder of the source code"


def built_with_torch(library: str) -> str:
    """Return the version of torch that a compiled extension was built with.

    It is read from the file: an extension of another torch may not load.

    Args:
        library: path of the extension.
    """
    match = re.search(rb"corrdet built with torch ([\w.+-]+)", Path(library).read_bytes())
    return match.group(1).decode() if match else "an unknown version"


def load() -> tuple[ModuleType | None, str]:
    """Import ``corrdet._C``.

    Returns:
        the extension, and nothing; or None, and why in one line and what to do.
    """
    try:
        spec = find_spec("corrdet._C")
        if spec is None or spec.origin is None:
            return None, _why_not_found()
        built = built_with_torch(spec.origin)
        # What follows a "+" names the variant (cpu, cu130), which may differ and still load.
        if built.split("+")[0] != torch.__version__.split("+")[0]:
            return None, (
                f"it was built with torch {built}, but this is torch {torch.__version__}: {REBUILD}"
            )
    except Exception as error:  # whatever is in that folder, the operators run without
        return None, f"it cannot be read ({_one_line(error)}): {REBUILD}"
    try:
        module = import_module("corrdet._C")
    except Exception as error:
        return None, (
            f"it does not load ({_one_line(error)}). It was built with torch {built}, and this is "
            f"torch {torch.__version__}: {REBUILD}"
        )
    return module, ""


def _why_not_found() -> str:
    files = sorted(path.name for path in Path(__file__).parents[1].glob("_C.*"))
    if files:
        return f"it is there for another Python or system alone ({', '.join(files)}): {REBUILD}"
    return "it is not built: build it with `pip install -e .` in the folder of the source code"


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


extension, WHY_NOT = load()
HAS_CUDA = extension is not None and extension.build_info()["cuda"] is not None
