"""Binding a variant to a model's attention modules, and undoing it.

transformers picks a model's attention function by a name in its config. Models may share one config object, so the
patched model gets a copy with our name in it.
"""

import copy
import warnings
from functools import partial

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel

from sa_patch.forward import Layer
from sa_patch.integration.checkpoints import SAVING
from sa_patch.integration.gates import add, make_gates, remove
from sa_patch.integration.generation import OVERRIDES
from sa_patch.integration.modules import attention_modules, device, device_and_dtype, heads_of, is_placed, kv_heads_here
from sa_patch.integration.state import NAME, UNPATCHED, State, state
from sa_patch.kept import KEPT
from sa_patch.kernels import crossover
from sa_patch.plan import Plan
from sa_patch.probing import refusal
from sa_patch.variants.base import Variant
from sa_patch.variants.gated import Gated

_IMPLEMENTATION = "_attn_implementation_internal"  # the attribute in which transformers' configs keep that name


def bind(model: nn.Module, plan: Variant | Plan, kernel: str, initial: float | None = None) -> State:
    """Make the model run a variant, or a plan of several. Replaces an earlier patch; on error the model is as it was.

    Args:
        initial: the value that the gates of a gated variant begin with.

    Raises:
        ValueError: when the model can't be patched or the variant doesn't fit it.
        NotImplementedError: when an option isn't available on the model's device.
    """
    modules = attention_modules(model)
    count = len(modules)
    if isinstance(plan, Variant):
        plan = Plan((plan,) * count)
    if len(plan.variants) != count:
        raise ValueError(f"the plan has {len(plan.variants)} layers, the model {count}: make one for this model")
    for variant in plan.distinct:
        for layer in variant.dense_layers:
            if not -count <= layer < count:
                raise ValueError(f"dense_layers has {layer}, but the model has layers 0..{count - 1}")
        if variant.dense_below == "crossover":
            crossover(variant.layout, 1, *device_and_dtype(model))
        _check_kernel(model, variant, kernel)
    if state(model) is None and modules[0].__dict__["config"]._attn_implementation == NAME:
        raise ValueError(UNPATCHED)
    layers = tuple(
        Layer(variant, kernel, layer, count, *_heads_here(model, module, variant))
        for layer, (variant, module) in enumerate(zip(plan.variants, modules, strict=True))
    )
    before = state(model)
    hides_gates = before is not None and (before.gates is not None or before.hides_gates)
    made = State(plan, kernel, layers, hides_gates=hides_gates)
    gated = [variant for variant in plan.distinct if isinstance(variant, Gated)]
    if gated:
        if plan.single is None or initial is None:
            raise ValueError("gated attention needs gates in the model: make them with sa_patch.gate(model, ...)")
        if before is not None:
            raise ValueError("this model is patched or gated already: restore() it before it gets new gates")
        made.gates = make_gates(model, modules, layers, initial, resample=gated[0].resample == "step")
    attach(model, made)
    return made


def _heads_here(model: nn.Module, module: nn.Module, variant: Variant) -> tuple[int, int | None]:
    """`Layer`'s first_head and kv_heads; (0, None) where a head's keys do not depend on its number."""
    if variant.head_dependent == "no":
        return 0, None
    total = heads_of(model)[1]
    first, count = kv_heads_here(module, total)
    if variant.head_dependent == "all" and count != total:
        raise NotImplementedError(
            f"{variant.name!r} lets all heads of a layer choose together here, and this process holds {count} of "
            f"{total} kv heads (tensor parallelism): use pool='head'"
        )
    return first, count


def _check_kernel(model: nn.Module, variant: Variant, kernel: str) -> None:
    """Raise NotImplementedError where the requested kernel can't run the variant on the model's device and dtype."""
    if kernel == "auto" or not is_placed(model):
        return
    reason = refusal(kernel, variant, *device_and_dtype(model), *heads_of(model))
    if reason:
        raise NotImplementedError(
            f"kernel {kernel!r} can't run {variant.name!r} on this model: {reason}. Use kernel='auto'; or, where "
            "that is the reason, move the model to its device before the patch"
        )


def attach(model: nn.Module, patch: State) -> None:
    """Make the model run a patch that `bind` made for it; the counts of an earlier use are kept."""
    unbind(model)
    modules = attention_modules(model)
    patch.original_config = modules[0].__dict__["config"]
    patch.snapshot = copy.deepcopy(patch.original_config.__dict__)
    patch.patched_config = copy.deepcopy(patch.original_config)
    patch.patched_config._attn_implementation = NAME
    _swap_config(model, patch.original_config, patch.patched_config)
    for module, layer in zip(modules, patch.layers, strict=True):
        for one in (layer, *layer.branches):  # cached here, because code that torch.compile traces can't make it
            one.traced.to(device(module))
        module.__dict__.update(_sa_patch=patch, _sa_patch_layer=layer)
    if patch.gates is not None:
        add(model, modules, patch.gates)
    for module in model.modules():
        if isinstance(module, GenerationMixin):
            module.__dict__.update({name: partial(function, module) for name, function in OVERRIDES.items()})
        if isinstance(module, PreTrainedModel) and (patch.gates is not None or patch.hides_gates):
            module.__dict__.update({name: partial(function, module) for name, function in SAVING.items()})
    # On the innermost model: a hook on one layer would make torch.compile compile that layer apart from the others.
    backbone = [module for module in model.modules() if isinstance(module, PreTrainedModel)][-1]
    backbone.register_forward_pre_hook(_tell_when_overridden)


def unbind(model: nn.Module) -> None:
    """Undo `bind`; does nothing when the model is not patched.

    What was written into the copy of the config in the meantime is written into the original.
    """
    held = state(model)
    if held is None:
        return
    for name, value in held.patched_config.__dict__.items():
        if name != _IMPLEMENTATION and (name not in held.snapshot or held.snapshot[name] != value):
            held.original_config.__dict__[name] = value
    for name in held.snapshot.keys() - held.patched_config.__dict__.keys():
        held.original_config.__dict__.pop(name, None)
    KEPT.forget()
    # A wrapper outside `model` may still hold the copy, so the copy gets the original's name.
    held.patched_config._attn_implementation = held.original_config._attn_implementation
    _swap_config(model, held.patched_config, held.original_config)
    remove(model)
    for module in model.modules():
        for name in ("_sa_patch", "_sa_patch_layer", *OVERRIDES, *SAVING):
            module.__dict__.pop(name, None)
        # By the function: in a deep copy of the model the hook has no handle.
        for key in [key for key, hook in module._forward_pre_hooks.items() if hook is _tell_when_overridden]:
            del module._forward_pre_hooks[key]


def _tell_when_overridden(module: nn.Module, _: object) -> None:
    """The backbone's forward pre-hook: warns, once per name, when another attention implementation was set."""
    if torch.compiler.is_compiling():
        return  # a compiled graph can't warn
    held = state(module)
    found = None if held is None else held.overridden
    if held is not None and found != held.warned_of:
        held.warned_of = found
        if found is not None:
            warnings.warn(
                f"the sa_patch of this model does not run: its attention implementation was set to {found!r} behind "
                f"it. To run it again, call model.set_attn_implementation({NAME!r}); to drop it, patch.restore()",
                stacklevel=2,
            )


def _swap_config(model: nn.Module, old: object, new: object) -> None:
    for module in model.modules():
        if module.__dict__.get("config") is old:
            module.__dict__["config"] = new
