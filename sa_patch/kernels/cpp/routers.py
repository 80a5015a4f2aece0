"""What routers do with rows of scores, as a function of the C++ program: on a CPU, where it was compiled before."""

import ctypes

import torch
from torch import Tensor

from sa_patch.kernels.cpp.library import is_compiled, library


def takes(scores: Tensor) -> bool:
    """Whether the program is there, and can read such a tensor. Routers compile nothing: the kernel does."""
    known = scores.device.type == "cpu" and scores.dtype == torch.float32 and scores.is_contiguous()
    return known and is_compiled()


def largest(scores: Tensor, count: int) -> Tensor:
    """As `sa_patch.router.largest`."""
    columns = scores.shape[-1]
    found = torch.empty(*scores.shape[:-1], count, dtype=torch.int64)
    if not found.numel():
        return found
    sizes = [ctypes.c_int64(one) for one in (scores.numel() // columns, columns, count)]
    pointers = (ctypes.c_void_p(one.data_ptr()) for one in (scores, found))
    if library().largest(next(pointers), *sizes, next(pointers), ctypes.c_int64(torch.get_num_threads())):
        raise MemoryError(f"the router has no memory left to choose {count} of {columns} blocks")
    return found
