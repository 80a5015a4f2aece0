"""What no gates can be put into: models that are wrapped, sharded, adapted or offloaded already.

Whoever wrapped them has listed their parameters before: the gates would not be synchronised, sharded or saved.
"""

import torch
from torch import nn

_WRAPPERS = {  # by name, so that nothing is imported for it
    "DataParallel": "torch.nn.DataParallel",
    "DistributedDataParallel": "DistributedDataParallel",
    "FullyShardedDataParallel": "FSDP",
    "FSDPModule": "fully_shard",
    "OptimizedModule": "torch.compile",
}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # in which a gate can be computed


def has_adapters(model: nn.Module) -> bool:
    """Whether PEFT wraps the model or has put adapters into it."""
    return any(kind.__module__.startswith("peft.") for module in model.modules() for kind in type(module).__mro__)


def refuse_ungateable(model: nn.Module) -> None:
    """
    Raises:
        ValueError: for a model that has to be gated at an earlier point, saying at which.
    """
    if has_adapters(model):
        raise ValueError(
            "this model has PEFT adapters, which are saved without gates that come later: gate the plain model, then "
            "get_peft_model(model, LoraConfig(..., modules_to_save=['gate_swa', 'gate_sa']))"
        )
    for module in model.modules():
        for kind in type(module).__mro__:
            if kind.__name__ in _WRAPPERS and kind.__module__.startswith("torch."):
                raise ValueError(
                    f"this model is wrapped by {_WRAPPERS[kind.__name__]}, which would not know of the gates: gate the "
                    "plain model, then wrap it"
                )
    meta = [parameter.is_meta for parameter in model.parameters()]
    if any(meta) and (not all(meta) or any(hasattr(module, "_hf_hook") for module in model.modules())):
        raise ValueError(
            "weights of this model are offloaded: load it without that (no device_map with 'cpu' or 'disk' beside a "
            "GPU), gate it, and then offload it (accelerate.cpu_offload, disk_offload or dispatch_model)"
        )


def place_of(module: nn.Module, model: nn.Module) -> tuple[torch.device, torch.dtype] | None:
    """Device of an attention module and the dtype it computes in: quantised weights are of none a gate can have.

    None for a module without parameters, or in a model without any that is not quantised.
    """
    own = next(module.parameters(), None)
    like = next((one.dtype for part in (module, model) for one in part.parameters() if one.dtype in _DTYPES), None)
    return None if own is None or like is None else (own.device, like)
