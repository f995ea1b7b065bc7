"""The devices that the matchings are tested on."""

from tests.helpers.ops import device  # noqa: F401
