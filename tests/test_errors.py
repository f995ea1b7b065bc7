import importlib
import pickle
import pkgutil

import pytest
from torch._utils import ExceptionWrapper

import corrdet
from corrdet.data import ImageReadError
from corrdet.errors import ConfigError, CorrdetError, errors_in_one_line


def all_errors() -> list[type]:
    for module in pkgutil.walk_packages(corrdet.__path__, "corrdet."):
        if not module.name.endswith("__main__") and "._C" not in module.name:
            importlib.import_module(module.name)
    found, new = [], [CorrdetError]
    while new:
        found += new
        new = [sub for error in new for sub in error.__subclasses__() if "corrdet." in str(sub)]
    return found


def test_each_is_also_a_built_in_one():
    errors = all_errors()
    assert len(errors) > 8
    built_in = ValueError | OSError | TypeError | FloatingPointError | RuntimeError
    for error in errors[1:]:
        assert issubclass(error, built_in), error


def raised_in_a_worker(message, cause=None):
    """What the training process gets of it."""
    try:
        raise ImageReadError(message) from cause
    except ImageReadError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 3")
    with pytest.raises(ImageReadError) as raised:
        pickle.loads(pickle.dumps(wrapped)).reraise()
    return str(raised.value)


@pytest.mark.parametrize(
    "message",
    ["cannot read a.jpg", "two\nlines", "of ImageReadError: it has its name", "Caught one", ""],
)
def test_the_message_of_a_loaders_process_is_the_original_one(message):
    assert raised_in_a_worker(message) == message
    assert raised_in_a_worker(message, cause=ImageReadError("the cause")) == message


def test_arguments_are_kept():
    for error in (ConfigError("text"), ConfigError("text", 2), ConfigError(), ImageReadError("x")):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error) and copy.args == error.args


def test_commands_end_with_one_line(capsys):
    with pytest.raises(SystemExit) as stopped, errors_in_one_line("it failed: "):
        raise ConfigError("A.B must be 1")
    assert stopped.value.code == "it failed: A.B must be 1"
    with pytest.raises(ValueError, match="a bug"), errors_in_one_line():
        raise ValueError("a bug")
