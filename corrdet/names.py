"""Error messages for names that do not exist, with the nearest that do."""

from collections.abc import Iterable
from difflib import get_close_matches


def unknown_name(what: str, name: str, valid: Iterable[str]) -> str:
    """A message such as ``unknown coupling 'corelation'; did you mean 'correlation'?``.

    Args:
        what: the kind of thing, for example "coupling".
        name: what was asked for.
        valid: the names that exist.
    """
    valid = sorted(valid)
    near = get_close_matches(name, valid, n=3, cutoff=0.5)
    if near:
        return f"unknown {what} {name!r}; did you mean {' or '.join(map(repr, near))}?"
    if len(valid) > 30:
        return f"unknown {what} {name!r}"
    return f"unknown {what} {name!r}; there are: {', '.join(valid) or 'none'}"
