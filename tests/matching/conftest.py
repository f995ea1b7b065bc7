"""The devices that the matchings are tested on."""

from tests.ops.conftest import device  # noqa: F401
