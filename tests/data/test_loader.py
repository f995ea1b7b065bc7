import itertools
import multiprocessing
import random

import numpy as np
import pytest
import torch
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm

from corrdet.data.image_checks import ImageReadError
from corrdet.data.loader import (
    PositionBatchSampler,
    ResumableLoader,
    build_sampler,
    build_train_loader,
    sample_random_state,
)
from corrdet.data.mapper import CorrdetDatasetMapper
from corrdet.errors import ConfigError
from tests.helpers.data import loader_config, same, take


def ids(batches: list[list[dict]]) -> list[list[int]]:
    return [[sample["image_id"] for sample in batch] for batch in batches]


@pytest.fixture
def world(monkeypatch):
    """Pretend to be one process of several."""

    def pretend(rank: int, size: int) -> None:
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: size)

    return pretend


@pytest.mark.slow
@pytest.mark.parametrize("grouping", [False, True])
def test_workers_and_resuming_change_nothing(digits_dicts, grouping):
    dicts = [{**record, "group": n % 2} for n, record in enumerate(digits_dicts)]
    cfg = loader_config(DATALOADER__ASPECT_RATIO_GROUPING=grouping)

    def build(workers: int) -> ResumableLoader:
        cfg.DATALOADER.NUM_WORKERS = workers
        return build_train_loader(cfg, seed=11, dataset=dicts)

    whole = take(build(0), 20)  # 60 samples of 40 images: more than one epoch
    assert same(whole, take(build(2), 20))
    for workers, done in ((0, 7), (2, 15)):
        resumed = build(workers)
        resumed.seek(done)
        assert resumed.batches_done == done
        assert same(whole[done:], take(resumed, 20 - done))
    # Augmentation took place: an image comes in several sizes, and flipped or not.
    sizes = {sample["image"].shape for batch in whole for sample in batch}
    assert len(sizes) > 1
    other = take(build_train_loader(cfg, seed=12, dataset=dicts), 20)
    assert ids(other) != ids(whole)


def test_augmentation_differs_between_epochs(digits_dicts):
    cfg = loader_config(SOLVER__IMS_PER_BATCH=1, INPUT__MIN_SIZE_TRAIN=(160,))
    loader = build_train_loader(cfg, seed=0, dataset=digits_dicts[:1])
    images = {batch[0]["image"].numpy().tobytes() for batch in take(loader, 20)}
    assert len(images) == 2  # as it is, and flipped


def test_every_image_once_per_epoch(digits_dicts):
    cfg = loader_config(SOLVER__IMS_PER_BATCH=8)
    epoch = take(build_train_loader(cfg, seed=0, dataset=digits_dicts), 5)
    assert sorted(sum(ids(epoch), [])) == [record["image_id"] for record in digits_dicts]


def test_processes_share_the_stream(digits_dicts, world):
    cfg = loader_config(SOLVER__IMS_PER_BATCH=4)
    alone = take(build_train_loader(cfg, seed=5, dataset=digits_dicts), 10)
    shares = []
    for rank in range(2):
        world(rank, 2)
        shares.append(take(build_train_loader(cfg, seed=5, dataset=digits_dicts), 10))
    assert not {i for batch in ids(shares[0]) for i in batch} & {
        i for batch in ids(shares[1]) for i in batch
    }
    # Iteration by iteration the same samples, augmentation included, as in one process.
    for batch, first, second in zip(alone, *shares, strict=True):
        together = [sample for pair in zip(first, second, strict=True) for sample in pair]
        assert same([batch], [together])


def test_batch_must_be_divisible(digits_dicts, world):
    world(0, 2)
    with pytest.raises(ValueError, match="IMS_PER_BATCH is 3"):
        build_train_loader(loader_config(), seed=0, dataset=digits_dicts)


def test_aspect_ratio_grouping():
    shapes = [(200, 100), (100, 200), (100, 100), (300, 100)] * 5
    dicts = [{"width": w, "height": h, "image_id": n} for n, (w, h) in enumerate(shapes)]
    cfg = loader_config(DATALOADER__ASPECT_RATIO_GROUPING=True)
    loader = build_train_loader(cfg, lambda record: record, seed=1, dataset=dicts)
    for batch in take(loader, 30):
        assert len(batch) == 3
        assert len({record["width"] > record["height"] for record in batch}) == 1


def test_stream_is_detectron2s_sampler(digits_dicts):
    cfg = loader_config(SOLVER__IMS_PER_BATCH=5)
    loader = build_train_loader(cfg, lambda record: record, seed=9, dataset=digits_dicts)
    expected = itertools.islice(TrainingSampler(len(digits_dicts), seed=9), 50)
    assert sum(ids(take(loader, 10)), []) == [digits_dicts[i]["image_id"] for i in expected]


def test_samplers(digits_dicts):
    cfg = loader_config()
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.9
    # Classes are rarer than the threshold: images of them come several times in an epoch.
    stream = list(itertools.islice(build_sampler(cfg, digits_dicts, 3), len(digits_dicts)))
    assert len(set(stream)) < len(digits_dicts)
    assert stream == list(itertools.islice(build_sampler(cfg, digits_dicts, 3), len(stream)))
    cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
    with pytest.raises(ConfigError, match="needs DATALOADER.RANDOM_SUBSET_RATIO below 1"):
        build_sampler(cfg, digits_dicts, 3)
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 1e-5
    with pytest.raises(ConfigError, match="RATIO is 1e-05, which is less than one of the"):
        build_sampler(cfg, digits_dicts, 3)
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.25
    stream = list(itertools.islice(build_sampler(cfg, digits_dicts, 3), 30))
    assert len(set(stream)) == len(digits_dicts) // 4
    assert stream == list(itertools.islice(build_sampler(cfg, digits_dicts, 3), 30))
    cfg.DATALOADER.SAMPLER_TRAIN = "TrainingSampler"
    with pytest.raises(ConfigError, match="RATIO is 0.25, but .* TrainingSampler does not read it"):
        build_sampler(cfg, digits_dicts, 3)
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 1.0
    cfg.DATALOADER.SAMPLER_TRAIN = "TrainSampler"
    with pytest.raises(ConfigError, match="unknown sampler 'TrainSampler'; did you mean 'Training"):
        build_sampler(cfg, digits_dicts, 3)


def test_a_resumed_loader_has_the_same_random_subset(digits_dicts):
    cfg = loader_config(DATALOADER__SAMPLER_TRAIN="RandomSubsetTrainingSampler")
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    whole = build_train_loader(cfg, lambda record: record, seed=9, dataset=digits_dicts)
    expected = ids(take(whole, 10))
    assert len(set(sum(expected, []))) == len(digits_dicts) // 2
    rest = build_train_loader(cfg, lambda record: record, seed=9, dataset=digits_dicts)
    rest.seek(6)
    assert ids(take(rest, 4)) == expected[6:]


def test_random_states_outside_are_untouched(digits_dicts):
    def draw() -> tuple:
        return random.random(), np.random.rand(), torch.rand(1).item()

    def seed() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    seed()
    expected = draw()
    for workers in (0, 1):
        cfg = loader_config(DATALOADER__NUM_WORKERS=workers)
        seed()
        with build_train_loader(cfg, seed=0, dataset=digits_dicts) as loader:
            next(loader)
            assert draw() == expected


def test_random_state_depends_on_seed_and_position():
    def draw(seed: int, position: int) -> tuple:
        with sample_random_state(seed, position):
            return random.random(), np.random.rand(), torch.rand(1).item()

    drawn = [draw(*pair) for pair in ((0, 0), (0, 1), (1, 0), (2**40, 2**40))]
    assert len(set(drawn)) == 4
    assert all(len({values[n] for values in drawn}) == 4 for n in range(3))
    assert draw(0, 1) == drawn[1]


def test_is_its_own_lazy_iterator(digits_dicts):
    reads = []

    def mapper(record: dict) -> dict:
        reads.append(record["image_id"])
        return record

    loader = build_train_loader(loader_config(), mapper, seed=4, dataset=digits_dicts)
    assert loader.seed == 4 and loader.last_batch is None
    assert iter(loader) is loader
    loader.seek(1000)
    assert not reads
    batch = next(loader)
    assert loader.last_batch is batch and loader.batches_done == 1001
    assert len(reads) == 3, "seeking must read no image"
    with pytest.raises(RuntimeError, match="before the first batch"):
        loader.seek(0)
    with pytest.raises(TypeError):
        len(loader)


def test_seek_refuses_negative_numbers(digits_dicts):
    loader = build_train_loader(loader_config(), seed=4, dataset=digits_dicts)
    with pytest.raises(ValueError, match="-1"):
        loader.seek(-1)


def test_closing_ends_the_workers(digits_dicts):
    loader = build_train_loader(
        loader_config(DATALOADER__NUM_WORKERS=2), seed=0, dataset=digits_dicts
    )
    before = set(multiprocessing.active_children())
    next(loader)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    loader.close()
    loader.close()
    assert not any(worker.is_alive() for worker in workers)
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_named(digits_dicts, workers, tmp_path):
    dicts = [{**record, "file_name": str(tmp_path / "absent.jpg")} for record in digits_dicts]
    cfg = loader_config(DATALOADER__NUM_WORKERS=workers)
    with build_train_loader(cfg, seed=0, dataset=dicts) as loader:
        with pytest.raises(ImageReadError, match="absent.jpg"):
            next(loader)


def test_mapper_may_skip_images(digits_dicts):
    def mapper(record: dict) -> dict | None:
        return record if record["image_id"] % 2 else None

    def build() -> ResumableLoader:
        return build_train_loader(loader_config(), mapper, seed=0, dataset=digits_dicts)

    batches = take(build(), 10)
    assert all(image_id % 2 for batch in ids(batches) for image_id in batch)
    assert ids(batches) == ids(take(build(), 10))
    loader = build_train_loader(loader_config(), lambda record: None, seed=0, dataset=digits_dicts)
    with pytest.raises(RuntimeError, match="None for every image"):
        next(loader)


def test_batch_size_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        PositionBatchSampler(TrainingSampler(3, seed=0), 0)


def test_random_seed_when_none_is_given(digits_dicts):
    assert build_train_loader(loader_config(SEED=6), dataset=digits_dicts).seed == 6
    assert build_train_loader(loader_config(SEED=-1), dataset=digits_dicts).seed >= 0


def test_config_mapper_is_the_default(registered, digits_dicts):
    cfg = loader_config()
    cfg.DATASETS.TRAIN = (registered(digits_dicts),)
    default = take(build_train_loader(cfg, seed=0), 2)
    explicit = take(build_train_loader(cfg, CorrdetDatasetMapper(cfg, is_train=True), 0), 2)
    assert same(default, explicit)
