"""The variants with their options that every law is tested on, and a brute-force reading of their definitions."""

import torch

import sa_patch
from sa_patch.geometry import Group
from sa_patch.variants import VARIANTS, Option, Variant, modes, options_of

CPU = torch.device("cpu")
WINDOWS = (5, 12, 64, 100)  # a case must be possible at any window

# Options that all variants share, and options together; those of one variant alone are tried without being named here.
TOGETHER = {
    "swa-sinks": ("swa", {"sinks": 3}),
    "swa-local": ("swa", {"local": 4}),
    "sa-sinks-local": ("sa", {"sinks": 2, "local": 4}),
    "sa-circular-local": ("sa", {"circular": True, "local": 5}),
    "sa-bucket-sinks-local": ("sa", {"form": "bucket", "sinks": 2, "local": 5}),
    "sa-tail": ("sa", {"dense_tail": 6}),
    "sa-nominal": ("sa", {"budget": "nominal", "sinks": 4, "local": 4}),
    "sa+swa-bucket": ("sa+swa", {"form": "bucket", "sinks": 2}),
    "sa-dyadic-extras": ("sa", {"horizon": "dyadic", "sinks": 2, "local": 4, "dense_tail": 5}),
    "sa+swa-dyadic": ("sa+swa", {"horizon": "dyadic", "sinks": 2}),
    "sa+swa-dyadic-bucket": ("sa+swa", {"horizon": "dyadic", "form": "bucket"}),
    "sa-bucket-weighted": (
        "sa",
        {"form": "bucket", "local": 4, "dense_tail": 5, "weight": "sampled", "weight_power": 1},
    ),
    "sa+swa-dyadic-weighted": ("sa+swa", {"horizon": "dyadic", "heads": "each", "sinks": 2, "weight": "sampled"}),
    "moba-sinks-local-tail": ("moba", {"sinks": 2, "local": 5, "dense_tail": 3}),
    "routed-small-blocks": ("routed", {"block_size": 2, "sinks": 1}),
    "routed-mean-local-tail": ("routed", {"block_size": 1, "router": "mean", "local": 3, "sinks": 1, "dense_tail": 5}),
    "routed-group-tiles": ("routed", {"share": "group", "query_block": 3, "router": "mean"}),
    "routed-nominal": ("routed", {"block_size": 2, "sinks": 1, "local": 3, "budget": "nominal"}),
    "vertical-slash-extras": ("vertical-slash", {"sinks": 2, "local": 3, "dense_tail": 5, "vertical_share": 0.25}),
    "random-keys-extras": ("random-keys", {"sinks": 2, "local": 4, "dense_tail": 5}),
    "random-keys-nominal": ("random-keys", {"budget": "nominal", "sinks": 2, "local": 3}),
}


def tried(option: Option) -> list:
    """Values of an option that are not its default."""
    values = {"switch": [True, False], "integer": [1, 3], "amount": [2, 4], "layers": [(0,)]}.get(option.kind, [])
    return [value for value in (*values, *option.words) if value != option.default]


def possible(mode: str, options: dict) -> bool:
    """Whether the variant takes these options at every window, and at any length."""
    try:
        made = [sa_patch.variant(mode, window, **options) for window in WINDOWS]
        return all(one.sparse_budget(length, 0) for one in made for length in (int(one.window) + 1, 1000))
    except (ValueError, NotImplementedError):
        return False


def every_case() -> dict[str, tuple[str, dict]]:
    """Every mode; every option of one variant alone, at values of its kind; what stands in TOGETHER, or, for a variant
    that has no line there, sinks, a local window and a dense tail."""
    found = {name: (mode.variant.name, dict(mode.fixed)) for name, mode in modes().items()} | TOGETHER
    for name, variant in VARIANTS.items():
        own = options_of(variant)[len(options_of(Variant)) :]
        more = {f"{name}-{item.told.format(value)}": {item.name: value} for item in own for value in tried(item)}
        if name not in {mode for mode, _ in TOGETHER.values()} and not variant.always_dense:
            more[f"{name}-extras"] = {"sinks": 2, "local": 3, "dense_tail": 5}
        fresh = {case: (name, options) for case, options in more.items() if possible(name, options)}
        found = {**{case: value for case, value in fresh.items() if value not in found.values()}, **found}
    return found


CASES = every_case()
# Those whose patterns are bands or blocks without weights: kernels that gather tiles of keys run no others.
TILED = [
    case
    for case, (mode, options) in CASES.items()
    if VARIANTS[mode].layout not in ("scattered", "selected", "lines") and "weight" not in options
]


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
