"""What the user can mend. Everything else is a bug, and keeps its traceback."""


class CorrdetError(Exception):
    """A message that says what was expected and what came; commands print it as one line.

    Subclasses are also the built-in exception that callers would expect, such as ValueError.
    """


class ConfigError(CorrdetError, ValueError):
    """A configuration that cannot be used, with the key to change."""
