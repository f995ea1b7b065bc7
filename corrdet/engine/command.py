"""How a command trains: in one process or several, with the user's errors in one line each."""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial

from corrdet.data.workers import worker_failure
from corrdet.errors import CorrdetError, WriteError, errors_in_one_line
from corrdet.files import disk_error

from .configuration import import_modules, load_config
from .faults import EXPLAINED, GRACE, FailedElsewhere, Watch, channel, failure_elsewhere, say
from .launching import (
    Place,
    check_counts,
    check_device,
    join_group,
    place_in_environment,
    start_processes,
)

# How long the first process, which keeps what the others look at, stays for them: seconds.
WAIT = 600


def run_command(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Run ``main(args)`` in the processes that torchrun has started, or that the arguments ask for.

    A :class:`CorrdetError` ends the program with one line, with several processes one of each that
    raised one, and the exit status 1. Any other exception keeps its traceback, also that of another
    process. When one process fails, all end, and say which it was.

    Args:
        main: a function of a module, such as that of train_net.py.
        args: with those of ``detectron2.engine.default_argument_parser()``, and perhaps
            ``imports``, modules to import first.
    """
    with errors_in_one_line():
        check_counts(args)
        place = place_in_environment(os.environ, args)
        if place is not None and place.world_size > 1:
            device = _device(args)
            check_device(device, place)
            _run_in_group(main, place, args, device)
        elif place is None and args.num_gpus * args.num_machines > 1:
            device = _device(args)  # here, so that an error of the config is said once
            start_processes(_Started(main, device), args, device)
        else:
            try:
                main(args)
            except (OSError, RuntimeError) as error:
                raise _mendable(error) or error from None


def _mendable(error: Exception) -> CorrdetError | None:
    """What the user can mend of errors of the system: a full disk, a killed worker."""
    if isinstance(error, CorrdetError):
        return error
    if (cause := disk_error(error)) is not None:
        return WriteError(f"{cause.filename or 'a file'} was not written: {cause.strerror}")
    return worker_failure(error)


def _device(args: argparse.Namespace) -> str:
    import_modules(getattr(args, "imports", ()))
    return load_config(args).MODEL.DEVICE


class _Started:
    """``main`` in a process that we have started; pickled on the way there."""

    def __init__(self, main: Callable, device: str):
        self._main = main
        self._device = device

    def __call__(self, place: Place, args: argparse.Namespace) -> None:
        _run_in_group(self._main, place, args, self._device)


def _run_in_group(main: Callable, place: Place, args: argparse.Namespace, device: str) -> None:
    join_group(place, device)
    shared = channel()
    watch = Watch(shared)
    watch.start()
    try:
        main(args)
    except Exception as error:
        # The process that started this one learns of an exception by its exit status only.
        sys.exit(_explain(error, place.rank))
    except SystemExit:  # all processes have agreed on it
        shared.say_goodbye(wait=WAIT)
        raise
    else:
        shared.say_goodbye(wait=WAIT)
    finally:
        watch.end()


def _explain(error: Exception, rank: int) -> int:
    """Say what has failed, here and to the other processes; returns an exit status."""
    shared, is_elsewhere, status = channel(), isinstance(error, FailedElsewhere), EXPLAINED
    wait = 2 * GRACE
    error = _mendable(error) or error
    if isinstance(error, CorrdetError):
        message = str(error)
    elif (failure := failure_elsewhere(error)) is not None:
        message, is_elsewhere = failure.told_by_another(), True
        wait = 2 if failure.rank is None else wait  # it does not come
    else:
        message, status = f"{type(error).__name__}: {error}", 1
    if status == EXPLAINED:
        say(message, rank)
    else:
        print(f"rank {rank}:\n{''.join(traceback.format_exception(error))}", file=sys.stderr)
    try:
        if not is_elsewhere:
            shared.set_failure(message)
        shared.say_goodbye(wait)
    except RuntimeError:  # what the processes find each other by is gone
        pass
    return status


def shorten_logged_errors() -> None:
    """Have Detectron2's trainer log a CorrdetError in one line, without a traceback.

    Nor has the log one for each line that a full disk does not take: what is to be written there
    says it. Call it when the loggers are set up.
    """
    logging.getLogger("detectron2.engine.train_loop").addFilter(_without_traceback)
    for name in ("corrdet", "detectron2", "fvcore"):
        for handler in logging.getLogger(name).handlers:
            handler.handleError = partial(_handle_error, handler.handleError)  # type: ignore


def _handle_error(handle: Callable, record: logging.LogRecord) -> None:
    if disk_error(sys.exc_info()[1]) is None:
        handle(record)


def _without_traceback(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, CorrdetError):
        record.msg, record.args, record.exc_info = f"{record.msg} {error}", (), None
    elif (failure := failure_elsewhere(error)) is not None:
        message = f"{record.msg} {failure.told_by_another()}"
        record.msg, record.args, record.exc_info = message, (), None
    return True
