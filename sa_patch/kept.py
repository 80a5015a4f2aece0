"""A cache of what lengths and seeds alone determine, shared by layers and calls: orders, plans, block masks.

All of it is bounded together; the least recently used entry goes first. The cache takes no part in a result: what is
not kept is computed again, equal bit by bit.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from sa_patch.patterns import Band, Blocks
from sa_patch.randomness import random_order

Made = TypeVar("Made")


@dataclass(eq=False)
class Kept:
    """Results of functions by what they depend on.

    Attributes:
        most: bytes held at once.
    """

    most: int
    bytes: int = 0
    _held: OrderedDict[tuple, tuple[Any, int]] = field(default_factory=OrderedDict)
    _lock: Any = field(default_factory=Lock)

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: tuple, device: torch.device, make: Callable[[], Made]) -> Made:
        """What `make` gives, made at most once while it is kept.

        Args:
            key: everything it depends on, the device aside.
            make: gives tensors of that device, or tuples and dataclasses of them.
        """
        if is_in_torch_dispatch_mode():  # somebody watches or fakes tensors: theirs are not for others
            return make()
        # A kernel on another stream would not wait for the one that makes it.
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        key = (*key, device, stream)
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key][0]
        # Or autograd could not save it later; and outside transforms (torch.func), whose tensors end with them.
        with torch.inference_mode(False), temporarily_clear_interpreter_stack():
            made = make()
        if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():  # a graph's memory is the graph's
            self._hold(key, made)
        return made

    def _hold(self, key: tuple, made: Any) -> None:
        size = sum(tensor.untyped_storage().nbytes() for tensor in _tensors(made))
        with self._lock:
            if size > self.most or key in self._held:
                return
            self._held[key] = made, size
            self.bytes += size
        self.shrink(self.most)

    def shrink(self, most: int) -> None:
        """Give memory back, the least recently used first, until at most so many bytes are held."""
        with self._lock:
            while self.bytes > most:
                self.bytes -= self._held.popitem(last=False)[1][1]

    def forget(self) -> None:
        """Give the memory back."""
        with self._lock:
            self._held.clear()
            self.bytes = 0


def _tensors(made: Any) -> Iterator[Tensor]:
    if isinstance(made, Tensor):
        yield made
    elif isinstance(made, (tuple, list)):
        for item in made:
            yield from _tensors(item)
    elif is_dataclass(made):
        for item in fields(made):
            yield from _tensors(getattr(made, item.name))


# All 36 layers of an 8B model at 131,072 tokens and w=512 take 260 MiB: an order of 1 MiB and 5 n keys of 8 bytes each.
KEPT = Kept(512 << 20)


def kept_order(
    horizon: int, seed: int, layer_idx: int, run_size: int, head: int | None, device: torch.device
) -> Tensor:
    """`random_order`, from the cache: 8 bytes per token of the horizon and layer."""
    key = ("order", horizon, seed, layer_idx, run_size, head)
    return KEPT.get(key, device, lambda: random_order(horizon, seed, layer_idx, run_size, head, device))


def kept_for(pattern: Band | Blocks, name: tuple, device: torch.device, make: Callable[[], Made]) -> Made:
    """What `make` computes from a pattern's own part, from the cache; computed anew where the order has no source.

    Args:
        name: what is made, and everything it depends on beside the pattern's own part.
    """
    return make() if pattern.own_key is None else KEPT.get((*name, *pattern.own_key), device, make)
