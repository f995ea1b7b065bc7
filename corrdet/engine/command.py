"""How a command trains: in one process or several, with the user's errors in one line each."""

import argparse
import logging
import sys
from collections.abc import Callable
from functools import partial

from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessExitedException

from corrdet.errors import CorrdetError, errors_in_one_line

from .configuration import check_gpus

# Exit status of a process that has printed what the user can mend; not one that others have.
EXPLAINED = 79


def run_command(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Run ``main(args)`` in the processes that Detectron2's arguments ask for.

    A :class:`CorrdetError` ends the program with one line, with several processes one of each that
    raised one, and the exit status 1. Any other exception keeps its traceback, also that of another
    process.

    Args:
        main: a function of a module, such as that of train_net.py.
        args: with those of ``detectron2.engine.default_argument_parser()``.
    """
    with errors_in_one_line():
        check_gpus(args.num_gpus)
        if args.num_gpus * args.num_machines > 1:
            main = partial(_in_a_process, main)
        try:
            launch(
                main,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
        except ProcessExitedException as error:
            if error.exit_code != EXPLAINED:
                raise
            sys.exit(1)


def _in_a_process(main: Callable, args: argparse.Namespace) -> None:
    # The process that started this one learns of an exception as text only, with its traceback.
    try:
        main(args)
    except CorrdetError as error:
        print(f"error: rank {comm.get_rank()}: {error}", file=sys.stderr, flush=True)
        sys.exit(EXPLAINED)


def shorten_logged_errors() -> None:
    """Have Detectron2's trainer log a CorrdetError in one line, without a traceback."""
    logging.getLogger("detectron2.engine.train_loop").addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, CorrdetError):
        record.msg, record.args, record.exc_info = f"{record.msg} {error}", (), None
    return True
