"""A training loader that gives the same batches whatever happens around it.

Detectron2's loader shuffles and augments from random states that depend on the number of workers,
and starts over when training is resumed. Here the n-th sample of a seed is one thing: the position
n in one infinite shuffled stream names the image, and seeds the augmentation. A run that was killed
and resumed after k batches therefore sees what an uninterrupted run sees from batch k on.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.utils.data as torchdata
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.serialize import PicklableWrapper

from corrdet.config_keys import declare
from corrdet.errors import ConfigError
from corrdet.names import unknown_name
from corrdet.options import Key, Range, is_number

from .dataset import training_dicts
from .mapper import CorrdetDatasetMapper, check_mapper
from .workers import prepare_worker

SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler")

declare(
    "DATALOADER",
    RANDOM_SUBSET_RATIO=Key(
        1.0,
        Range("in (0, 1]", lambda v: is_number(v) and 0 < v <= 1),
        "of SAMPLER_TRAIN RandomSubsetTrainingSampler: share of the images that are trained on, "
        "drawn from SEED",
    ),
)


class ResumableLoader:
    """Endless batches for training: an iterable that is its own iterator.

    Workers start at the first ``next()``, not before: trainers may call ``iter()`` early
    (Detectron2 0.6 does so in its constructor) and :meth:`seek` must still be possible then.

    Attributes:
        seed: what the stream and the augmentations are drawn from.
        batches_done: how many batches were handed out, those skipped by :meth:`seek` included.
        last_batch: the list of dicts handed out last, for error messages; None before the first.
    """

    def __init__(
        self,
        dataset: torchdata.Dataset | Sequence[dict],
        mapper: Callable[[dict], dict | None],
        sampler: torchdata.Sampler,
        *,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        groups: Sequence[int] | None = None,
    ) -> None:
        """
        Args:
            dataset: a list of dataset dicts or a map-style data set; indexed by the sampler.
            mapper: from a dataset dict to a sample. None instead of a sample replaces the image by
                another random one.
            sampler: the endless indices of this process: every world_size-th of a stream that is
                the same in all processes.
            batch_size: of this process.
            seed: for augmentations; that of the stream is in the sampler.
            num_workers: processes that read ahead; 0 for none.
            groups: group of each image; all images of a batch are of one group. None for no
                grouping.
        """
        if isinstance(dataset, list):
            dataset = DatasetFromList(dataset, copy=False, serialize=True)
        self.seed = int(seed)
        self.batches_done = 0
        self.last_batch: list[dict] | None = None
        self._dataset = _SeededDataset(dataset, mapper, self.seed)
        self._batch_sampler = PositionBatchSampler(sampler, batch_size, groups)
        self._num_workers = num_workers
        self._iterator: Iterator[list[dict]] | None = None
        self._is_closed = False

    def __iter__(self) -> "ResumableLoader":
        return self

    def __next__(self) -> list[dict]:
        if self._iterator is None:
            self._start()
        self.last_batch = next(self._iterator)
        self.batches_done += 1
        return self.last_batch

    def seek(self, batches_done: int) -> None:
        """Go on after the first ``batches_done`` batches. Replays indices only; no image is read.

        Raises:
            RuntimeError: after the first ``next()``.
            ValueError: for a negative number.
        """
        if self._iterator is not None or self._is_closed:
            raise RuntimeError("seek() is possible only before the first batch is taken")
        if batches_done < 0:
            raise ValueError(f"cannot seek to batch {batches_done}")
        self.batches_done = int(batches_done)

    def close(self) -> None:
        """Stop the workers. No batch can be taken afterwards; closing again changes nothing."""
        self._is_closed = True
        iterator, self._iterator = self._iterator, None
        # As PyTorch's destructor does, which comes later where an error's traceback refers to the
        # iterator: until then PyTorch would raise another error for a worker that was killed.
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()

    def __enter__(self) -> "ResumableLoader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _start(self) -> None:
        if self._is_closed:
            raise RuntimeError("the loader is closed")
        self._batch_sampler.skip = self.batches_done
        # A generator of its own: DataLoader draws a seed for its workers from it, by default from
        # the global one, where a resumed run would then draw once more than an uninterrupted run.
        generator = torch.Generator()
        generator.manual_seed(self.seed % 2**63)
        self._iterator = iter(
            torchdata.DataLoader(
                self._dataset,
                batch_sampler=self._batch_sampler,
                num_workers=self._num_workers,
                collate_fn=_no_collation,
                worker_init_fn=_seed_worker,
                generator=generator,
            )
        )


class PositionBatchSampler(torchdata.Sampler):
    """Batches of (position in the common stream, index of the image).

    Args:
        sampler: endless indices: number rank, rank + world_size, ... of the common stream.
        batch_size: pairs per batch.
        groups: group of each image, or None. With groups a batch is given out when its group has
            enough images, as :class:`detectron2.data.AspectRatioGroupedDataset` does.

    ``skip`` is the number of batches to leave out at the beginning.
    """

    def __init__(
        self,
        sampler: torchdata.Sampler,
        batch_size: int,
        groups: Sequence[int] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"the batch size must be positive, not {batch_size}")
        self.sampler = sampler
        self.batch_size = batch_size
        self.groups = None if groups is None else np.asarray(groups)
        self.skip = 0
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return itertools.islice(self._batches(), self.skip, None)

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        positions = itertools.count(self._rank, self._world_size)
        pending: dict[int, list[tuple[int, int]]] = {}
        for position, index in zip(positions, self.sampler, strict=False):
            group = 0 if self.groups is None else int(self.groups[index])
            batch = pending.setdefault(group, [])
            batch.append((position, int(index)))
            if len(batch) == self.batch_size:
                del pending[group]
                yield batch


class _SeededDataset(torchdata.Dataset):
    """Maps (position, index) to a sample, under random states that the position determines."""

    def __init__(self, dataset: torchdata.Dataset, mapper: Callable, seed: int) -> None:
        self.dataset = dataset
        self.mapper = PicklableWrapper(mapper)  # lambdas, too, can then go to spawned workers
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, int]) -> dict:
        position, index = item
        with sample_random_state(self.seed, position):
            for _ in range(max(3, len(self.dataset))):
                sample = self.mapper(self.dataset[index])
                if sample is not None:
                    return sample
                index = random.randrange(len(self.dataset))
        raise RuntimeError("the mapper returned None for every image that was tried")


@contextmanager
def sample_random_state(seed: int, position: int) -> Iterator[None]:
    """In the block, Python's, numpy's and torch's CPU generators start from (seed, position).

    Their states are put back afterwards: without workers this runs in the training process, whose
    own random numbers must not depend on the loading.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence([seed % 2**64, position]).generate_state(4)
    random.seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words)
    # Not torch.manual_seed: that would seed the GPUs as well.
    torch.default_generator.manual_seed(int(words[2]) << 31 | int(words[3]) >> 1)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def build_train_loader(
    cfg: CfgNode,
    mapper: Callable[[dict], dict | None] | None = None,
    seed: int | None = None,
    *,
    dataset: list[dict] | None = None,
) -> ResumableLoader:
    """The training loader of a config.

    Reads ``SOLVER.IMS_PER_BATCH`` (images per iteration on all GPUs together),
    ``DATALOADER.NUM_WORKERS``, ``ASPECT_RATIO_GROUPING``, ``SAMPLER_TRAIN``,
    ``FILTER_EMPTY_ANNOTATIONS``, with Detectron2's meanings, and what :func:`training_dicts` reads.

    Args:
        cfg: the config.
        mapper: ``CorrdetDatasetMapper(cfg, is_train=True)`` if not given.
        seed: must be the same in all processes. ``cfg.SEED`` if not given; if that is negative, a
            random one that all processes agree on. A resumed run must give the ``seed`` of the
            first loader.
        dataset: :func:`training_dicts` of the config if not given.

    Returns:
        The loader of this process.

    Raises:
        ConfigError: the batch cannot be divided among the processes, or the sampler is unknown.
        EmptyDatasetError, AnnotationError, ImageReadError: see :func:`training_dicts`; and
            :func:`~.mapper.check_mapper`.
    """
    if seed is None:
        seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    world_size = comm.get_world_size()
    total = cfg.SOLVER.IMS_PER_BATCH
    if total <= 0 or total % world_size:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {total}, which {world_size} process(es) cannot share equally"
        )
    dicts = training_dicts(cfg) if dataset is None else dataset
    mapper = CorrdetDatasetMapper(cfg, is_train=True) if mapper is None else mapper
    check_mapper(mapper, dicts)
    groups = None
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        groups = [int(record["width"] > record["height"]) for record in dicts]
    return ResumableLoader(
        dicts,
        mapper,
        build_sampler(cfg, dicts, seed),
        batch_size=total // world_size,
        seed=seed,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        groups=groups,
    )


def build_sampler(cfg: CfgNode, dicts: Sequence[dict], seed: int) -> torchdata.Sampler:
    """Detectron2's sampler ``DATALOADER.SAMPLER_TRAIN``, with a seed that resuming keeps.

    Raises:
        ConfigError: there is no such sampler, or a subset that nothing reads or that is none.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    # Detectron2 reads this key, but its default config does not have it.
    ratio = cfg.DATALOADER.get("RANDOM_SUBSET_RATIO", 1.0)
    if ratio != 1 and name != "RandomSubsetTrainingSampler":
        raise ConfigError(
            f"DATALOADER.RANDOM_SUBSET_RATIO is {ratio}, but DATALOADER.SAMPLER_TRAIN {name} does "
            "not read it: expected RandomSubsetTrainingSampler"
        )
    if name == "TrainingSampler":
        return TrainingSampler(len(dicts), seed=seed)
    if name == "RepeatFactorTrainingSampler":
        # Detectron2 0.6 has no REPEAT_SQRT; it always takes the root.
        options = {} if cfg.DATALOADER.get("REPEAT_SQRT", True) else {"sqrt": False}
        repeat_factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dicts, cfg.DATALOADER.REPEAT_THRESHOLD, **options
        )
        return RepeatFactorTrainingSampler(repeat_factors, seed=seed)
    if name == "RandomSubsetTrainingSampler":
        if ratio == 1:
            raise ConfigError(
                f"DATALOADER.SAMPLER_TRAIN is {name!r}, which needs DATALOADER.RANDOM_SUBSET_RATIO "
                "below 1, such as 0.1"
            )
        if int(len(dicts) * ratio) < 1:
            raise ConfigError(
                f"DATALOADER.RANDOM_SUBSET_RATIO is {ratio}, which is less than one of the "
                f"{len(dicts)} image(s) to train on"
            )
        return RandomSubsetTrainingSampler(len(dicts), ratio, seed_shuffle=seed, seed_subset=seed)
    raise ConfigError("DATALOADER.SAMPLER_TRAIN: " + unknown_name("sampler", name, SAMPLERS))


def _no_collation(batch: list[dict]) -> list[dict]:
    return batch


def _seed_worker(worker_id: int) -> None:
    prepare_worker()
    # Every sample is seeded; this is for mappers that have generators of their own.
    seed_all_rng((torch.initial_seed() + worker_id) % 2**31)
