"""The only package that knows transformers: registration, binding to a model's attention modules, and undoing it."""

from sa_patch.integration import attention as _registration  # noqa: F401
from sa_patch.integration.binding import attach, bind, unbind
from sa_patch.integration.checkpoints import is_gated, load_gates, load_model, local_folder
from sa_patch.integration.modules import TESTED, VERIFIED, device, device_and_dtype, head_shape, heads_of
from sa_patch.integration.state import State, state

__all__ = [
    "TESTED",
    "VERIFIED",
    "State",
    "attach",
    "bind",
    "device",
    "device_and_dtype",
    "head_shape",
    "heads_of",
    "is_gated",
    "load_gates",
    "load_model",
    "local_folder",
    "state",
    "unbind",
]
