"""What the user can mend. Everything else is a bug, and keeps its traceback."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class CorrdetError(Exception):
    """A message that says what was expected and what came; commands print it as one line.

    Subclasses are also the built-in exception that callers would expect, such as ValueError.
    """

    def __init__(self, *args):
        if len(args) == 1 and isinstance(args[0], str):
            args = (original_message(type(self), args[0]),)
        super().__init__(*args)


def original_message(error: type, message: str) -> str:
    """The message that an error had in a loader's process.

    PyTorch raises it again in the training process: the same type, with the whole traceback of the
    other process as its message.
    """
    if not re.match(rf"Caught {error.__name__} in .*\.\nOriginal ", message):
        return message
    # Behind a traceback comes the type, after the name of its module, and then the message.
    starts = [*re.finditer(rf"^(?:\S+\.)?{error.__name__}(?:: |$)", message, re.MULTILINE)]
    return message[starts[-1].end() :].strip() if starts else message


class ConfigError(CorrdetError, ValueError):
    """A configuration that cannot be used, with the key to change."""


class WriteError(CorrdetError, OSError):
    """A file or folder cannot be written."""


@contextmanager
def errors_in_one_line(prefix: str = "error: ") -> Iterator[None]:
    """For a command: a CorrdetError ends the program with its message and the exit status 1.

    Args:
        prefix: of the message.
    """
    try:
        yield
    except CorrdetError as error:
        sys.exit(f"{prefix}{error}")
