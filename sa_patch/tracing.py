"""Whether the values in a call's tensors can be looked at. Imports torch only."""

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.jit._trace import is_tracing


def values_are_hidden(*tensors: Tensor | None) -> bool:
    """True while the call is being traced, and where a tensor has a shape but no values.

    Tracers: torch.compile, torch.export, make_fx, torch.jit.trace. Shapes only: FakeTensorMode, the meta device.
    """
    if torch.compiler.is_compiling():
        return True
    if is_tracing() or get_proxy_mode() is not None:
        return True
    return any(isinstance(tensor, FakeTensor) or tensor.is_meta for tensor in tensors if tensor is not None)
