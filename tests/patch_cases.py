"""The variants with their options that every law is tested on, and a brute-force reading of their definitions."""

import torch

import sa_patch
from sa_patch.geometry import Group

CPU = torch.device("cpu")

CASES = {
    "swa": ("swa", {}),
    "swa-sinks": ("swa", {"sinks": 3}),
    "swa-local": ("swa", {"local": 4}),
    "sa": ("sa", {}),
    "sa-circular": ("sa", {"circular": True}),
    "sa-sinks-local": ("sa", {"sinks": 2, "local": 4}),
    "sa-circular-local": ("sa", {"circular": True, "local": 5}),
    "sa-bucket": ("sa", {"form": "bucket"}),
    "sa-bucket-sinks-local": ("sa", {"form": "bucket", "sinks": 2, "local": 5}),
    "sa-tail": ("sa", {"dense_tail": 6}),
    "sa-nominal": ("sa", {"budget": "nominal", "sinks": 4, "local": 4}),
    "sa+swa": ("sa+swa", {}),
    "sa+swa-bucket": ("sa+swa", {"form": "bucket", "sinks": 2}),
    "sa-dyadic": ("sa", {"horizon": "dyadic"}),
    "sa-dyadic-bucket": ("sa", {"horizon": "dyadic", "form": "bucket"}),
    "sa-dyadic-extras": ("sa", {"horizon": "dyadic", "sinks": 2, "local": 4, "dense_tail": 5}),
    "sa+swa-dyadic": ("sa+swa", {"horizon": "dyadic", "sinks": 2}),
    "sa+swa-dyadic-bucket": ("sa+swa", {"horizon": "dyadic", "form": "bucket"}),
    "moba": ("moba", {}),
    "moba-top1": ("moba", {"top_k": 1}),
    "moba-top3": ("moba", {"top_k": 3}),
    "moba-sinks-local-tail": ("moba", {"sinks": 2, "local": 5, "dense_tail": 3}),
    "random-keys": ("random-keys", {}),
    "random-keys-extras": ("random-keys", {"sinks": 2, "local": 4, "dense_tail": 5}),
    "random-keys-nominal": ("random-keys", {"budget": "nominal", "sinks": 2, "local": 3}),
    "full": ("full", {}),
}

# Those whose patterns are bands or blocks: kernels that gather tiles of keys run no others.
TILED = [case for case in CASES if not case.startswith("random-keys")]


def make_variant(case: str, window: int | float = 12, **changes) -> sa_patch.Variant:
    mode, options = CASES[case]
    return sa_patch.variant(mode, window, **{**options, **changes})


def make_pattern(variant, length, layer_idx=0, query=None, key=None, query_len=None):
    return variant.sparse_pattern(Group(length, query_len or length, CPU), layer_idx, query, key)


def random_heads(length, heads=4, kv_heads=2, head_dim=16, batch=2, dtype=torch.float32, query_len=None, seed=0):
    """(query, key, value) of [batch, heads, query_len, head_dim] and [batch, kv_heads, length, head_dim]."""
    source = torch.Generator().manual_seed(seed)
    shapes = [(heads, query_len or length), (kv_heads, length), (kv_heads, length)]
    return tuple(torch.randn(batch, *shape, head_dim, generator=source).to(dtype) for shape in shapes)


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The bytes of the largest tensor that operators make while it lives."""

    def __init__(self):
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.nbytes = max(self.nbytes, tensor.untyped_storage().nbytes())
        return result
