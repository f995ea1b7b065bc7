#!/usr/bin/env python
"""Train or evaluate: ``python train_net.py --config-file FILE [options] [KEY VALUE ...]``.

The arguments are Detectron2's own, with their own meaning, and ``--import``.
"""

from functools import partial

from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from corrdet.coco import read_once
from corrdet.data import load_dataset
from corrdet.data.records import by_one_process
from corrdet.engine import (
    CorrdetTrainer,
    OutputFolder,
    StrictCheckpointer,
    check_output,
    check_run,
    import_modules,
    is_restarted,
    load_config,
    log_processes,
    run_command,
    shorten_logged_errors,
    take_average,
)
from corrdet.engine.evaluator import CorrelationEvaluator


def argument_parser():
    parser = default_argument_parser()
    parser.add_argument(
        "--import",
        dest="imports",
        metavar="MODULE",
        action="append",
        default=[],
        help="Python module, or path of a .py file, to import first: it may register losses, "
        "models and data sets. Can be given several times",
    )
    return parser


def main(args):
    import_modules(args.imports)
    cfg = load_config(args)
    resumes = args.resume or is_restarted()
    check_run(cfg, eval_only=args.eval_only, resume=resumes, trainer=CorrdetTrainer)
    check_output(cfg.OUTPUT_DIR)
    with OutputFolder(cfg.OUTPUT_DIR, eval_only=args.eval_only) as folder:
        default_setup(cfg, args)
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="corrdet")
        shorten_logged_errors()
        log_processes(cfg.MODEL.DEVICE)
        if args.eval_only:
            return evaluate(cfg, resume=args.resume)
        trainer = CorrdetTrainer(cfg)
        trainer.resume_or_load(resume=args.resume or folder.has_begun)
        folder.note_beginning()
        return trainer.train()


def evaluate(cfg, resume):
    model = CorrdetTrainer.build_model(cfg)
    checkpointer = StrictCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    checkpoint = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    take_average(model, checkpoint, cfg)
    evaluators = None
    with read_once():  # by checks, evaluators and loaders
        if cfg.TEST.REPORT:
            names = cfg.DATASETS.TEST
            for name in names:
                # Its checks say more than the evaluator would.
                by_one_process(partial(check_dataset, cfg, name), [name])
            evaluators = [CorrdetTrainer.build_evaluator(cfg, name) for name in names]
        results = CorrdetTrainer.test(cfg, model, evaluators)
    if comm.is_main_process() and evaluators is not None:
        write_reports(cfg, evaluators, results)
    if cfg.TEST.AUG.ENABLED:
        results.update(CorrdetTrainer.test_with_TTA(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def check_dataset(cfg, name):
    load_dataset(cfg, name)


def write_reports(cfg, evaluators, results):
    """A report of each data set that was evaluated, see corrdet.analysis."""
    from corrdet.engine.report import report_evaluation  # its figures take a while to import

    for name, evaluator in zip(cfg.DATASETS.TEST, evaluators, strict=True):
        if not isinstance(evaluator, CorrelationEvaluator):
            print(f"no report of {name}: it is not evaluated as COCO is")
            continue
        # Detectron2 leaves out the name of a data set that is the only one.
        reported = results if len(evaluators) == 1 else results[name]
        for path in report_evaluation(cfg, name, evaluator, reported):
            print(f"report: {path}")


def command():
    """Of the shell: corrdet-train."""
    run_command(main, argument_parser().parse_args())


if __name__ == "__main__":
    command()
