"""The devices that the operators are tested on, and the GPU that is emulated."""

from tests.helpers.emulation import emulator  # noqa: F401
from tests.helpers.ops import backend, device  # noqa: F401
