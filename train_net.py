#!/usr/bin/env python
"""Train or evaluate: ``python train_net.py --config-file FILE [options] [KEY VALUE ...]``.

The arguments are Detectron2's own, with their own meaning.
"""

import sys
import traceback
from pathlib import Path

from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm

import corrdet
from corrdet.data import ImageReadError
from corrdet.engine import CorrdetTrainer, SafeCheckpointer, load_config


def main(args):
    cfg = load_config(args)
    default_setup(cfg, args)

    if args.eval_only:
        model = CorrdetTrainer.build_model(cfg)
        checkpointer = SafeCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        if not cfg.MODEL.WEIGHTS and not (args.resume and checkpointer.has_checkpoint()):
            sys.exit("error: --eval-only needs weights: MODEL.WEIGHTS path/to/model_final.pth")
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = CorrdetTrainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    trainer = CorrdetTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def explains_itself(error: Exception) -> bool:
    """Whether corrdet raised it on purpose: its message says it all, a traceback would bury it."""
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    # Errors of the loader's processes are raised once more by torch.
    return isinstance(error, ImageReadError) or Path(corrdet.__file__).parent in raised_in.parents


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    try:
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except (ValueError, OSError, FloatingPointError) as error:
        if not explains_itself(error):
            raise
        sys.exit(f"error: {error}")
