"""Detectron2's trainer, with exact resuming, correlation measures, and errors that name images."""

import inspect
import logging
import os
import weakref
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.engine import DefaultTrainer, TrainerBase
from detectron2.engine.hooks import EvalHook, LRScheduler, PeriodicWriter
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from corrdet.coco import read_once
from corrdet.data import (
    CorrdetDatasetMapper,
    ResumableLoader,
    build_train_loader,
)
from corrdet.data.image_checks import ImageSizeError
from corrdet.data.mapper import warn_of_own_loaders
from corrdet.data.workers import PreparingWorkers, worker_failure
from corrdet.errors import CorrdetError, original_message
from corrdet.modeling import build_test_time_augmentation, load_old_state
from corrdet.names import function_of, kind_of

from .averaging import AverageWeights
from .checkpoint import SafeCheckpointer
from .divergence import diverged
from .evaluator import CorrelationEvaluator
from .hooks import (
    AnyLRScheduler,
    RankStates,
    RecentScalars,
    WriterOfEvaluations,
    is_restored_by_detectron2,
)
from .optimizer import build_optimizer, scale_to_processes
from .pictures import Pictures, draws_no_pictures
from .random_state import get_random_states, set_random_states
from .rank_states import check_batch, collect_rank_states, restore_rank_state
from .resuming import (
    check_resumable,
    move_aside,
    old_files,
    take_learning_rates,
    truncate_metrics,
)
from .starting_weights import StartingWeights
from .steps import TrainingStep, batch_norm_of_one_value, check_accumulation, check_norms
from .stopping import StopSignals, TrainingStopped
from .test_sets import (
    check_test_sets,
    leaves_out,
    load_once,
    load_test_set,
    results_folder,
    share_test_set,
    shares_files,
)
from .validation import (
    BestCheckpoint,
    EarlyStopping,
    WatchMetric,
    build_loss_loader,
    check_metrics,
    mean_losses,
)
from .watched_loader import WatchedLoader


class _StoppedEarly(BaseException):
    """Ends the loop of Detectron2's trainer; not an Exception, which it would log as an error."""


class CorrdetTrainer(DefaultTrainer):
    """Trains and evaluates any Detectron2 model, corrdet's or not.

    What differs from DefaultTrainer: a training that was killed and resumed has the loss curve of
    one that was not (on one process); checkpoints are atomic and loaded weights-only; a loss that
    is not finite is reported with the images that it came from; the evaluation measures beta_cls
    and, for models that give positives, beta_img.
    """

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: with corrdet's keys.
        """
        # Not DefaultTrainer's constructor: it builds a loader that cannot resume, a checkpointer
        # that is not atomic, and a DistributedDataParallel that needs GPUs.
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        cfg = scale_to_processes(cfg)
        self.cfg = cfg
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self._reason_to_stop: str | None = None

        check_metrics(cfg, type(self))
        check_accumulation(cfg)
        # Before the writers make new ones.
        self._old_files = old_files(cfg.OUTPUT_DIR)
        self._detector = self.build_model(cfg)
        check_norms(self._detector, cfg.MODEL.DEVICE)
        optimizer = self.build_optimizer(cfg, self._detector)
        is_own = _is_overridden(type(self), "build_train_loader")
        with read_once() if is_own or shares_files(cfg) else nullcontext():
            self._loader = self._usable(self.build_train_loader(cfg))
            check_test_sets(type(self), cfg, is_own=_is_overridden(type(self), "build_test_loader"))
        model = self._detector
        if comm.get_world_size() > 1:
            device_ids = [comm.get_local_rank()] if cfg.MODEL.DEVICE.startswith("cuda") else None
            model = nn.parallel.DistributedDataParallel(
                model, device_ids=device_ids, broadcast_buffers=False
            )
        self._trainer = TrainingStep(
            model,
            self._loader,
            optimizer,
            parts=cfg.SOLVER.ACCUMULATE,
            mixed_precision_on=cfg.MODEL.DEVICE.split(":")[0] if cfg.SOLVER.AMP.ENABLED else None,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SafeCheckpointer(
            self._detector, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.checkpointer.starting = StartingWeights.from_config(cfg)
        self._random_states: dict | None = None
        # With the iteration that they are of.
        self._rank_states: tuple[int, list | None] | None = None
        self._signals = StopSignals()
        self.register_hooks(self.build_hooks())

    def _usable(self, loader):
        """The training loader, watched where it is not corrdet's, which is said."""
        if isinstance(loader, ResumableLoader):
            return loader
        logging.getLogger(__name__).warning(
            "%s.build_train_loader gives %s: the training can be resumed, but goes on with other "
            "images than without the stop. corrdet.data.build_train_loader(cfg, mapper=...) "
            "resumes exactly",
            type(self).__name__,
            kind_of(loader),
        )
        warn_of_own_loaders(self.cfg, "TRAIN", f"{type(self).__name__}.build_train_loader")
        return WatchedLoader(loader)

    # ---- What is built.

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, seed: int | None = None) -> ResumableLoader:
        """``seed``: of the order and the augmentations; None for ``SEED``, or a random one."""
        return build_train_loader(cfg, seed=seed)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        # Prepared as for training, images without annotations included: beta_img needs the boxes.
        records = share_test_set(cfg, dataset_name)
        mapper = CorrdetDatasetMapper(cfg, is_train=False, keep_instances=cfg.TEST.BETA_IMG)
        return build_detection_test_loader(
            records, mapper=PreparingWorkers(mapper), num_workers=cfg.DATALOADER.NUM_WORKERS
        )

    @classmethod
    def build_loss_loader(cls, cfg: CfgNode, dataset_name: str):
        """The batches of a test set that ``TEST.EVAL_LOSS`` takes the losses of."""
        return build_loss_loader(cfg, share_test_set(cfg, dataset_name))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None):
        """``output_folder``: by default ``OUTPUT_DIR/inference``; see :func:`results_folder`."""
        if MetadataCatalog.get(dataset_name).get("evaluator_type") == "pascal_voc":
            return PascalVOCDetectionEvaluator(dataset_name)
        is_first = comm.is_main_process()  # which alone evaluates
        return CorrelationEvaluator(
            dataset_name,
            output_dir=output_folder or results_folder(cfg, "inference", dataset_name),
            detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
            kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
            used=load_test_set(cfg, dataset_name) if leaves_out(cfg) and is_first else None,
        )

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """That of ``SOLVER.OPTIMIZER``; see :mod:`corrdet.engine.optimizer`."""
        return build_optimizer(cfg, model)

    def build_hooks(self) -> list:
        hooks = super().build_hooks()
        # Behind timing and schedule, before what saves and writes: a checkpoint and a line of
        # metrics then hold the same iterations.
        hooks.insert(2, RecentScalars())
        # Behind PreciseBN, or the None in its place.
        hooks.insert(4, RankStates(self.cfg.SOLVER.CHECKPOINT_PERIOD))
        average = None
        if self.cfg.MODEL_EMA.ENABLED:
            average = AverageWeights(self._detector, self.cfg.MODEL_EMA.DECAY)
            hooks.insert(2, average)
        if not is_restored_by_detectron2(self.scheduler):
            hooks = [AnyLRScheduler() if type(h) is LRScheduler else h for h in hooks]
        hooks = [
            WriterOfEvaluations(h, self.cfg.TEST.EVAL_PERIOD) if type(h) is PeriodicWriter else h
            for h in hooks
        ]
        (place,) = (i for i, hook in enumerate(hooks) if isinstance(hook, EvalHook))
        if self.cfg.TEST.EVAL_LOSS:
            hooks[place]._func = partial(self._evaluate_with_losses, hooks[place]._func)
        if self.cfg.TEST.AUG.ENABLED:
            # Behind the evaluation without it, and before what writes: once, after training.
            evaluate = EvalHook(0, lambda: self.test_with_TTA(self.cfg, self._detector))
            hooks.insert(place + 1, evaluate)
        # Before the writers, or last on the processes that have none.
        place = len(hooks) - isinstance(hooks[-1], PeriodicWriter)
        hooks[place:place] = self._hooks_of_evaluation()
        if self.cfg.VIS_PERIOD > 0 and comm.is_main_process() and draws_no_pictures(self.cfg):
            hooks.insert(2, Pictures(self.cfg, self._detector))
        for hook in hooks:
            if average is not None and isinstance(hook, EvalHook):
                hook._func = average.evaluating(hook._func)
        return hooks

    def _hooks_of_evaluation(self) -> list:
        cfg = self.cfg
        hooks, period = [], cfg.TEST.EVAL_PERIOD
        best, stopping = cfg.TEST.BEST_CHECKPOINT, cfg.SOLVER.EARLY_STOPPING
        if best.METRIC:
            hooks.append(BestCheckpoint(best.METRIC, best.MODE, period, self.checkpointer))
        if stopping.METRIC:
            metrics_file = os.path.join(cfg.OUTPUT_DIR, "metrics.json")
            hooks.append(
                EarlyStopping(
                    stopping.METRIC, stopping.MODE, period, stopping.PATIENCE, metrics_file
                )
            )
        return hooks

    # ---- Training.

    def train(self):
        """
        Raises:
            TrainingStopped: by a signal, with a checkpoint after the latest iteration.
        """
        try:
            with self._signals:
                return super().train()
        except _StoppedEarly:
            return getattr(self, "_last_eval_results", None)
        finally:
            if isinstance(self._loader, ResumableLoader):
                self._loader.close()

    def before_train(self):
        # Whatever was registered behind it: what a hook logs in an iteration is written in it.
        # What watches metrics comes before, behind all hooks that measure some.
        self._hooks.sort(
            key=lambda h: 2 * isinstance(h, PeriodicWriter) + isinstance(h, WatchMetric)
        )
        super().before_train()
        # Last, so that nothing that is set up on the way has drawn from them.
        if self._random_states is not None:
            set_random_states(self._random_states)
            self._random_states = None
        if self._reason_to_stop is not None:
            logging.getLogger(__name__).warning(
                "%s: nothing is left to train", self._reason_to_stop
            )
            raise _StoppedEarly

    def stop_early(self, reason: str) -> None:
        """End the training after this iteration, as if it were the last; on all processes."""
        self._reason_to_stop = reason

    @property
    def is_stopped_early(self) -> bool:
        """Whether :meth:`stop_early` was called."""
        return self._reason_to_stop is not None

    def after_step(self):
        super().after_step()
        if self.iter + 1 >= self.max_iter:
            return
        if (name := self._signals.stops_after(self.iter)) is not None:
            self._stop_by(name)
        if self._reason_to_stop is None:
            return
        logging.getLogger(__name__).info(
            "%s: the training ends at iteration %d", self._reason_to_stop, self.iter
        )
        self.collect_rank_states()
        self.checkpointer.save("model_final", iteration=self.iter)
        # As after the last iteration, but without another evaluation.
        self.iter += 1
        self.storage.iter = self.iter
        for hook in self._hooks:
            if isinstance(hook, EvalHook) and hook._period == 0:
                hook._do_eval()
            elif isinstance(hook, PeriodicWriter):
                for writer in hook._writers:
                    if hasattr(writer, "_max_iter"):  # tells how long the rest will take
                        writer._max_iter = self.iter
        raise _StoppedEarly

    def _stop_by(self, signal_name: str) -> None:
        self.collect_rank_states()
        name = f"model_{self.iter:07d}"
        if comm.is_main_process():
            period = self.cfg.SOLVER.CHECKPOINT_PERIOD
            if period <= 0 or (self.iter + 1) % period:  # else it is saved already
                self.checkpointer.save(name, iteration=self.iter)
        comm.synchronize()  # a process that ends makes launchers end the others
        message = f"{signal_name}: stopped after iteration {self.iter}; --resume goes on"
        logging.getLogger(__name__).info(message)
        raise TrainingStopped(message)

    def run_step(self):
        """
        Raises:
            DivergedError: a loss or the gradient is NaN or infinite; names what, the iteration and
                the images. The weights have not been changed by that iteration.
            ConfigError: a batch norm has too few values.
        """
        try:
            super().run_step()
        except FloatingPointError as error:
            batch = self._loader.last_batch
            raise diverged(error, self._trainer, batch, self.cfg, self.iter) from error
        except SizeMismatchError as error:  # a ValueError
            if isinstance(error, CorrdetError):
                raise
            # Of Detectron2's mapper in a loader of the user's, which the checks do not see.
            raise ImageSizeError(
                f"{original_message(SizeMismatchError, str(error))} Detectron2's DatasetMapper "
                "turns every image by its EXIF tag; corrdet.data.CorrdetDatasetMapper, which takes "
                "the same arguments, where the stated size is the turned one"
            ) from error
        except (RuntimeError, ValueError, ConnectionError, EOFError) as error:
            failure = worker_failure(error) or batch_norm_of_one_value(error, self.cfg)
            if failure is not None:
                raise failure from error
            raise

    # ---- Resuming.

    def state_dict(self) -> dict:
        state = TrainerBase.state_dict(self)
        # Detectron2 0.6 leaves this out, and with it the optimizer; later versions have it here.
        state["_trainer"] = self._trainer.state_dict()
        state["config"] = self.cfg.dump()
        state["random_states"] = get_random_states()
        if self._rank_states is not None and self._rank_states[0] == self.iter:
            state["ranks"] = self._rank_states[1]
        # None for a loader of the user's.
        is_resumable = isinstance(self._loader, ResumableLoader)
        state["data_seed"] = self._loader.seed if is_resumable else None
        return state

    def load_state_dict(self, state: dict) -> None:
        TrainerBase.load_state_dict(self, state)
        if isinstance(self._loader, ResumableLoader):
            self._take_seed(state["data_seed"])
        self._trainer.load_state_dict(state["_trainer"])
        load_old_state(self._detector, state)
        self._random_states = (
            restore_rank_state(self._detector, state.get("ranks")) or state["random_states"]
        )

    def collect_rank_states(self) -> None:
        """Have the next checkpoint, if of this iteration, hold what each process has for itself.

        All processes call it.
        """
        if comm.get_world_size() > 1:
            self._rank_states = self.iter, collect_rank_states(self._detector)

    def _check_checkpoint(self, checkpoint: Mapping, path: str) -> None:
        check_resumable(checkpoint, path, self.cfg, self._detector, self._trainer.optimizer)
        check_batch(checkpoint, path, self.cfg)

    def _take_seed(self, seed: int | None) -> None:
        """Go on with the order and augmentations of the checkpoint's run."""
        if seed not in (None, self._loader.seed):
            # A run without SEED draws one; this run has drawn another.
            self._loader.close()
            # By the config, as a user's method need not take a seed.
            cfg = self.cfg.clone()
            cfg.defrost()
            cfg.SEED = seed
            if _is_overridden(type(self), "build_train_loader"):
                self._loader = self.build_train_loader(cfg)
            else:  # without reading it all again
                self._loader = build_train_loader(cfg, dataset=self._loader.dataset)
            self._trainer = self._trainer.with_loader(self._loader)
        if seed != self._loader.seed:
            logging.getLogger(__name__).warning(
                "the checkpoint's run read its images by %s: this one goes on with others",
                "another loader" if seed is None else f"the seed {seed}, not {self._loader.seed}",
            )

    def resume_or_load(self, resume: bool = True) -> None:
        """As DefaultTrainer's. What an earlier training left is moved aside if it is not resumed.

        Raises:
            CheckpointError: the checkpoint is of another training, or no key of ``MODEL.WEIGHTS``
                is one of the model.
        """
        resumes = resume and self.checkpointer.has_checkpoint()
        rates = [g.get("initial_lr", g["lr"]) for g in self._trainer.optimizer.param_groups]
        if resumes:
            self.checkpointer.check = self._check_checkpoint
        try:
            super().resume_or_load(resume=resume)
        finally:
            self.checkpointer.check = None
        if resumes and self.cfg.SOLVER.RESUME_LR == "config":
            take_learning_rates(self._trainer.optimizer, self.scheduler, rates)
        if not resumes:
            comm.synchronize()  # MODEL.WEIGHTS may be among the files
            if comm.is_main_process() and self._old_files:
                folder = move_aside(self.cfg.OUTPUT_DIR, self._old_files)
                logging.getLogger(__name__).warning(
                    "OUTPUT_DIR has an earlier training, which is not resumed: its files are in %s "
                    "now",
                    folder,
                )
            self._old_files = []
        if self.start_iter > 0:
            if isinstance(self._loader, ResumableLoader):
                self._loader.seek(self.start_iter)
            if comm.is_main_process():
                truncate_metrics(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json"), self.start_iter)

    # ---- Evaluation.

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None) -> dict:
        """As DefaultTrainer.test; training goes on as if it had not happened."""
        states = get_random_states()
        try:
            with load_once():  # the loader, its checks and the evaluator read the same
                return super().test(cfg, model, evaluators)
        finally:
            set_random_states(states)

    def _evaluate_with_losses(self, evaluate: Callable[[], dict | None]) -> dict:
        with load_once(len(self.cfg.DATASETS.TEST)):
            return {**(evaluate() or {}), **self.test_losses()}

    def test_losses(self) -> dict[str, float]:
        """The losses on the test sets: ``val_loss_cls``, ..., ``val_total_loss``.

        With several test sets, each behind the name of its set: ``my_val/val_loss_cls``.
        """
        results = {}
        names = self.cfg.DATASETS.TEST
        for name in names:
            loader = self.build_loss_loader(self.cfg, name)
            prefix = f"{name}/val_" if len(names) > 1 else "val_"
            losses = mean_losses(self._detector, loader, self.iter)
            results.update({prefix + loss: value for loss, value in losses.items()})
        return results

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict:
        """Evaluate with the views of TEST.AUG, as Detectron2's train_net.py does.

        Returns:
            the results of :meth:`test` with ``_TTA`` behind their names; its files are in
            ``OUTPUT_DIR/inference_TTA``.
        """
        model = build_test_time_augmentation(cfg, model)
        takes_folder = "output_folder" in inspect.signature(cls.build_evaluator).parameters
        evaluators = []
        for name in cfg.DATASETS.TEST:
            folder = results_folder(cfg, "inference_TTA", name)
            if takes_folder:
                evaluators.append(cls.build_evaluator(cfg, name, output_folder=folder))
            else:  # one of the user's, as Detectron2's base class has it
                own = cfg.clone()
                own.defrost()
                own.OUTPUT_DIR = folder
                evaluators.append(cls.build_evaluator(own, name))
        results = cls.test(cfg, model, evaluators)
        return {f"{name}_TTA": result for name, result in results.items()}


def _is_overridden(trainer: type, method: str) -> bool:
    return function_of(getattr(trainer, method)) is not function_of(getattr(CorrdetTrainer, method))
