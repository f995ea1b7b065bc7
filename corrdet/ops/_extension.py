"""Loads the compiled extension ``corrdet._C``, which registers ``torch.ops.corrdet``."""

import re
from importlib.util import find_spec
from pathlib import Path

import torch  # before the extension, which is linked against its libraries

REBUILD = "Build it again with `pip install -e .` in the folder of the source code."


def built_with_torch(library: str) -> str:
    """Return the version of torch that a compiled extension was built with.

    It is read from the file: an extension of another torch may not load.

    Args:
        library: path of the extension.
    """
    match = re.search(rb"corrdet built with torch ([\w.+-]+)", Path(library).read_bytes())
    return match.group(1).decode() if match else "an unknown version"


def load():
    """Import ``corrdet._C``.

    Raises:
        ImportError: it is not built, or was built with another torch.
    """
    spec = find_spec("corrdet._C")
    if spec is None:
        raise ImportError(
            "corrdet's compiled extension, corrdet._C, is not built. Build it with "
            "`pip install -e .` in the folder of the source code."
        )
    built = built_with_torch(spec.origin)
    # What follows a "+" names the variant (cpu, cu130), which may differ and still load.
    if built.split("+")[0] != torch.__version__.split("+")[0]:
        raise ImportError(
            f"corrdet's compiled extension was built with torch {built}, but this is torch "
            f"{torch.__version__}. {REBUILD}"
        )
    try:
        from corrdet import _C
    except ImportError as error:
        raise ImportError(
            f"corrdet's compiled extension does not load: {error}. It was built with torch "
            f"{built}, and this is torch {torch.__version__}. {REBUILD}"
        ) from error
    return _C


extension = load()
HAS_CUDA = extension.build_info()["cuda"] is not None
