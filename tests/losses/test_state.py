"""What losses keep from step to step: in checkpoints, in copies and on other devices."""

import copy
import io
import pickle

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from corrdet.data import build_train_loader
from corrdet.losses import COUPLINGS, Criterion
from corrdet.losses.registry import REGISTRIES
from tests.helpers.losses import matched_predictions

MEMORY = 12  # more than ten, whose numbers do not sort as text


def batch(seed: int, num_positives: int = 5):
    logits = torch.randn(20, 3, generator=torch.Generator().manual_seed(seed))
    return matched_predictions(num_positives, logits=logits)


def criterion() -> Criterion:
    """With both kinds of state: a tensor that is updated, and lists."""
    return Criterion("ghm_c", "ghm_r", ["correlation"], {"correlation": {"memory": MEMORY}})


def trained(steps: int = MEMORY + 3) -> Criterion:
    result = criterion()
    for seed in range(steps):
        # Of one or more positives, so that it shows which batch is which.
        result(batch(seed, 1 + seed % 5))
    return result


class Detector(nn.Module):
    def __init__(self, criterion: Criterion):
        super().__init__()
        self.head = nn.Linear(2, 3)
        self.criterion = criterion


def test_a_round_trip_through_a_file(tmp_path):
    first, other = trained(), criterion()
    torch.save(first.state_dict(), tmp_path / "state.pth")
    other(batch(99))
    other.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    assert other(batch(7)) == first(batch(7)) != criterion()(batch(7))


def test_lists_keep_their_order():
    first = trained()
    names = [f"state.correlation.{name}.{i}" for name in ("scores", "ious") for i in range(MEMORY)]
    found = [name for name in first.state_dict() if "correlation" in name]
    assert names == [name.partition("[")[0] for name in found]
    other = criterion()
    # Checkpoints may have another order.
    other.load_state_dict(dict(sorted(first.state_dict().items())))
    for step in range(3):  # in which the oldest are forgotten
        assert other(batch(step)) == first(batch(step))


def test_what_was_saved_does_not_change():
    first = trained()
    saved = first.state_dict()
    before = copy.deepcopy(saved)
    first(batch(0))
    other = criterion()
    other.load_state_dict(saved)
    other(batch(1))
    assert saved.keys() == before.keys()
    assert all(torch.equal(saved[name], before[name]) for name in saved)


def test_a_loss_that_writes_into_its_state_leaves_the_checkpoint_alone():
    @COUPLINGS.register("test_only_count")
    def _count(matched, *, state):
        state.setdefault("steps", torch.zeros(())).add_(1)
        return matched.scores.sum() * state["steps"].item()

    first, other = (Criterion("sigmoid_focal", "giou", ["test_only_count"]) for _ in range(2))
    first(batch(0))
    saved = copy.deepcopy(first.state_dict())
    other.load_state_dict(saved)
    other(batch(0))
    assert saved["state.test_only_count.steps[]"] == 1
    assert other.state_dict()["state.test_only_count.steps[]"] == 2


def test_states_of_other_losses_are_left_out():
    states = trained().state_dict()
    other = Criterion("ghm_c", "giou")
    other.load_state_dict(states, strict=True)
    assert list(other.state_dict()) == ["state.ghm_c.counts[30]"]
    assert torch.equal(
        other.state_dict()["state.ghm_c.counts[30]"], states["state.ghm_c.counts[30]"]
    )
    # Nor has a loss without a checkpoint the state of what was trained before.
    other.load_state_dict({})
    assert other.state_dict() == {}


@pytest.mark.parametrize("name", ["ap", "ape", "rank_sort", "alrp", "pairwise_error"])
def test_a_memory_that_is_switched_off_is_not_carried_on(name):
    """From checkpoint to checkpoint, of trainings that never read it."""
    options = {"correlation": {"memory": 3}, name: {"memory": 3}}
    first = Criterion(name, "giou", ["correlation"], options)
    first(batch(0))
    states = first.state_dict()
    assert {key.split(".")[1] for key in states} == {"correlation", name}

    other = Criterion(name, "giou", ["correlation"])
    other.load_state_dict(states)
    assert other.state_dict() == {}
    other(batch(1))
    assert other.state_dict() == {}
    other.restore({"correlation": {"scores": [torch.ones(3)]}})
    assert other.state_dict() == {}


def test_every_loss_with_a_memory_says_so():
    for registry in REGISTRIES:
        for name, loss in registry.items():
            if "memory" in loss.options:
                assert loss.state_with == "memory", name


def test_a_shorter_memory_forgets_at_once():
    first = trained()
    options = {"correlation": {"memory": 2}}
    other, expected = (Criterion("ghm_c", "ghm_r", ["correlation"], options) for _ in range(2))
    other.load_state_dict(first.state_dict())
    expected.load_state_dict(first.state_dict())
    state = expected.couplings["correlation"].state
    for name in ("scores", "ious"):
        state[name] = state[name][-2:]
    assert other(batch(7)) == expected(batch(7))


class TestCheckpoints:
    """Through Detectron2's checkpointer, which compares shapes before a module sees them."""

    def test_a_training_goes_on(self, tmp_path):
        first, other = Detector(trained()), Detector(criterion())
        DetectionCheckpointer(first, str(tmp_path)).save("model")
        DetectionCheckpointer(other, str(tmp_path)).load(str(tmp_path / "model.pth"))
        assert torch.equal(other.head.weight, first.head.weight)
        assert other.criterion(batch(7)) == first.criterion(batch(7)) != criterion()(batch(7))

    def test_another_training_goes_on(self, tmp_path):
        """In a model that has a state already, of other shapes."""
        first, other = Detector(trained(4)), Detector(criterion())
        for seed in range(5):
            other.criterion(batch(seed, 5 - seed))
        DetectionCheckpointer(first, str(tmp_path)).save("model")
        DetectionCheckpointer(other, str(tmp_path)).load(str(tmp_path / "model.pth"))
        assert other.state_dict().keys() == first.state_dict().keys()
        assert other.criterion(batch(7)) == first.criterion(batch(7))

    def test_one_without_the_state(self, tmp_path, caplog):
        """Of a detector that was trained with other losses, or before this was a module."""
        first, other = Detector(Criterion("sigmoid_focal", "giou")), Detector(criterion())
        DetectionCheckpointer(first, str(tmp_path)).save("model")
        DetectionCheckpointer(other, str(tmp_path)).load(str(tmp_path / "model.pth"))
        assert torch.equal(other.head.weight, first.head.weight)
        assert other.criterion(batch(7)) == criterion()(batch(7))
        assert "criterion" not in caplog.text

    def test_one_with_states_of_other_losses(self, tmp_path, caplog):
        first, other = Detector(trained()), Detector(Criterion("sigmoid_focal", "giou"))
        DetectionCheckpointer(first, str(tmp_path)).save("model")
        DetectionCheckpointer(other, str(tmp_path)).load(str(tmp_path / "model.pth"))
        assert torch.equal(other.head.weight, first.head.weight)
        assert list(other.criterion.state_dict()) == []
        assert "criterion" not in caplog.text


def test_a_whole_module_can_be_pickled():
    old = Detector(trained())
    file = io.BytesIO()
    torch.save(old, file)
    file.seek(0)
    new = torch.load(file, weights_only=False)
    assert new.state_dict().keys() == old.state_dict().keys()
    assert new.criterion(batch(1)) == old.criterion(batch(1))
    assert pickle.loads(pickle.dumps(old)).criterion.classification.loss is (
        old.criterion.classification.loss
    )


def test_counts_of_other_bins_start_anew():
    other = Criterion("ghm_c", "ghm_r", options={"ghm_c": {"bins": 10}})
    other.load_state_dict(trained().state_dict(), strict=False)
    fresh = Criterion("ghm_c", "ghm_r", options={"ghm_c": {"bins": 10}})
    assert other(batch(1))["loss_cls"] == fresh(batch(1))["loss_cls"]


def test_names_with_dots_and_failing_loads():
    @COUPLINGS.register("test_only_dotted")
    def dotted(matched, *, state):
        state["ema.mean"] = torch.ones(1)
        return matched.scores.sum()

    old = Criterion("sigmoid_focal", "giou", ["test_only_dotted"])
    old(batch(0))
    new = Criterion("sigmoid_focal", "giou", ["test_only_dotted"])
    new.load_state_dict(old.state_dict())
    assert new.state_dict() == old.state_dict() and len(old.state_dict()) == 1


def test_couplings_can_be_any_iterable():
    assert Criterion("sigmoid_focal", "giou", iter(["correlation"])).couplings.keys() == {
        "correlation"
    }


def test_states_of_version_0_1():
    """Where a checkpoint had them beside the model, as dicts and lists."""
    first, other = trained(), criterion()
    states: dict = {"another_loss": {"counts": torch.ones(3)}}
    for name, value in first.state_dict().items():
        _, loss, name, *index = name.partition("[")[0].split(".")
        state = states.setdefault(loss, {})
        if index:
            state.setdefault(name, []).append(value)
        else:
            state[name] = value
    other.restore(states)
    assert other(batch(7)) == first(batch(7))


def test_a_copy_has_a_state_of_its_own():
    first = trained()
    copied = copy.deepcopy(first)
    before = copy.deepcopy(first.state_dict())
    losses = copied(batch(7))
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())
    assert losses == first(batch(7))
    # And it is the copy's losses that write there.
    assert all(
        torch.equal(value, copied.state_dict()[name]) for name, value in first.state_dict().items()
    )


def test_the_state_moves_with_the_module():
    moved = trained().to("meta")
    assert {value.device.type for value in moved.state_dict().values()} == {"meta"}


def test_the_state_keeps_its_precision():
    """Losses are computed in float32, also of a model in half precision."""
    first = trained()
    before = copy.deepcopy(first.state_dict())
    first.half()
    for name, value in first.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, before[name]), name


@pytest.mark.cuda
def test_the_state_moves_to_a_gpu_and_back():
    first = trained()
    before = copy.deepcopy(first.state_dict())
    moved = first.cuda()
    assert {value.device.type for value in moved.state_dict().values()} == {"cuda"}
    for name, value in moved.cpu().state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.slow
def test_a_copy_of_a_model_is_one_of_its_own(tiny_cfg):
    tiny_cfg.MODEL.CRITERION.CORRELATION.MEMORY = 2
    model = build_model(tiny_cfg).train()
    with build_train_loader(tiny_cfg, seed=0) as loader, EventStorage():
        batches = [next(loader) for _ in range(3)]
        model(batches[0])
        copied = copy.deepcopy(model)
        before = copy.deepcopy(model.state_dict())
        sum(copied(batches[1]).values()).backward()
        assert all(p.grad is None for p in model.parameters())
        after = model.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)
        # What the copy remembers is what the model then remembers as well.
        model(batches[1])
        losses, others = model(batches[2]), copied(batches[2])
    assert losses.keys() == others.keys()
    assert all(torch.equal(losses[name], others[name]) for name in losses)
