"""Gates in a model: their parameters, the hooks that compute them, and the count of training steps.

A layer's two gates are linear maps from what the attention layer reads to one number per head. They are modules of the
model like any other: in its state_dict, trained, moved and wrapped with it.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init
from transformers import PreTrainedModel

from sa_patch.forward import Layer
from sa_patch.geometry import Geometry
from sa_patch.integration.gateable import place_of, refuse_ungateable
from sa_patch.kept import KEPT

NAMES = ("gate_swa", "gate_sa")  # of the modules, in the order of the variant's branches
STEPS = "gate_steps"
ARGUMENT = "sa_patch_gates"  # under which a layer's gates reach the attention function
_STEP = "sa_patch_step"  # under which the model hands a training step to its layers
_GENERATES = (
    "a gated model gets a cache in training mode: if this is generation, every token counts as a training step and "
    "sees other permutations. Call model.eval() before it, and model.train() after it"
)
_KEPT_BYTES = 64 << 20  # of orders, in training: those of earlier steps are of no more use


class TrainingSteps(nn.Module):
    """Counts the forward passes of a model in training mode: what permutations are drawn for.

    The count is part of the state_dict. It is no buffer, because it must stay in CPU memory, and a new tensor at every
    step, because a layer that is computed again in the backward pass needs the number it was computed with.

    Attributes:
        count: forward passes so far, int64 [].
        handed_on: whether the model takes arguments by name and hands them to its layers.
    """

    def __init__(self) -> None:
        super().__init__()
        with torch.inference_mode(False):
            self.count = torch.zeros((), dtype=torch.int64, device="cpu")
        self.handed_on = False

    def get_extra_state(self) -> Tensor:
        return self.count.clone()

    def set_extra_state(self, state: Tensor) -> None:
        self.count = state.detach().to(device="cpu", dtype=torch.int64).reshape(()).clone()


@dataclass(eq=False)
class Gates:
    """The parameters that gating adds to a model.

    Attributes:
        layers: the modules of every attention layer under `NAMES`; None where a layer stays full.
        steps: None where permutations are never drawn anew.
    """

    layers: tuple[nn.ModuleDict | None, ...]
    steps: TrainingSteps | None


def make_gates(
    model: nn.Module, modules: list[nn.Module], layers: tuple[Layer, ...], initial: float, *, resample: bool
) -> Gates:
    """Fresh gates for a model's attention modules: `initial` for every token and head.

    Raises:
        ValueError: for a model that is wrapped, adapted or offloaded, whose layers don't pass arguments on, or that has
            modules of these names.
    """
    refuse_ungateable(model)
    made: list[nn.ModuleDict | None] = []
    for module, layer in zip(modules, layers, strict=True):
        kinds = {parameter.kind for parameter in signature(type(module).forward).parameters.values()}
        if Parameter.VAR_KEYWORD not in kinds:
            raise ValueError(f"{type(module).__name__} passes no arguments on to its attention, so it can't be gated")
        if any(name in module._modules for name in NAMES):
            raise ValueError(f"{type(module).__name__} has a module named {' or '.join(NAMES)} already")
        own = None if layer.is_dense_layer else {name: _gate(model, module, initial) for name in NAMES}
        made.append(None if own is None else nn.ModuleDict(own))
    return Gates(tuple(made), TrainingSteps() if resample else None)


def _gate(model: nn.Module, module: nn.Module, initial: float) -> nn.Linear:
    config = module.__dict__["config"]
    place = place_of(module, model)
    if place is None:
        raise ValueError("no weight of this model is a floating point number of 16, 32 or 64 bits, as gates have to be")
    device, dtype = place
    sizes = config.hidden_size, config.num_attention_heads
    with torch.inference_mode(False):  # or they could not be trained
        gate = skip_init(nn.Linear, *sizes, device=device, dtype=dtype)  # draws no random numbers
        assert isinstance(gate, nn.Linear)
        nn.init.zeros_(gate.weight)
        nn.init.constant_(gate.bias, math.log(initial / (1 - initial)))
    return gate


def add(model: nn.Module, modules: list[nn.Module], gates: Gates) -> None:
    """Put gates into a model, with the hooks that compute and count."""
    for module, pair in zip(modules, gates.layers, strict=True):
        if pair is None:
            continue
        place = place_of(module, model)
        for name, gate in pair.items():
            if place is not None and place[0].type != "meta":  # the model may have been moved while it had no gates
                gate.to(*place)
            module.add_module(name, gate.train(module.training))
        module.register_forward_pre_hook(_pass_gates, with_kwargs=True)
    if gates.steps is not None:
        # On the innermost model, as long as layers that are compiled one by one are to stay alike.
        backbone = [module for module in model.modules() if isinstance(module, PreTrainedModel)][-1]
        backbone.add_module(STEPS, gates.steps.train(backbone.training))
        kinds = {parameter.kind for parameter in signature(type(backbone).forward).parameters.values()}
        gates.steps.handed_on = Parameter.VAR_KEYWORD in kinds
        backbone.register_forward_pre_hook(_count_step, with_kwargs=True)


def remove(model: nn.Module) -> None:
    """Undo `add`; nothing happens in a model without gates."""
    for module in list(model.modules()):
        hooks = [key for key, hook in module._forward_pre_hooks.items() if hook in (_pass_gates, _count_step)]
        for key in hooks:
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)
        for name in (*NAMES, STEPS) if hooks else ():
            module._modules.pop(name, None)


def _pass_gates(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """An attention module's pre-hook: gates [batch, q_len, heads] in (0, 1) from what the layer reads."""
    hidden = args[0] if args else kwargs["hidden_states"]
    return args, {**kwargs, ARGUMENT: tuple(module.get_submodule(name)(hidden).sigmoid() for name in NAMES)}


def _count_step(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """The backbone's pre-hook: counts, and hands the step to the layers, with whose arguments it comes again.

    Raises:
        NotImplementedError: when the whole model is computed again in a backward pass: it could not tell which step; in
            a replica of DataParallel, whose count is thrown away.
    """
    if not module.training:
        return None
    if getattr(module, "_is_replica", False):
        raise NotImplementedError(
            "torch.nn.DataParallel copies the model at every step, and what the copies count is lost: start one "
            "process per GPU (torchrun --nproc_per_node N, accelerate launch), show this one a single GPU, or gate "
            "with resample='never'"
        )
    steps = module.get_submodule(STEPS)
    assert isinstance(steps, TrainingSteps)
    if not torch.compiler.is_compiling():
        if torch._C._current_graph_task_id() != -1:
            raise NotImplementedError(
                "a checkpoint around the whole model computes it again in the backward pass, with other permutations: "
                "use model.gradient_checkpointing_enable(), which goes layer by layer, or gate with resample='never'"
            )
        if kwargs.get("past_key_values") is not None:
            warnings.warn(_GENERATES, stacklevel=2)
        KEPT.shrink(_KEPT_BYTES)
    steps.count = steps.count + 1
    return (args, {**kwargs, _STEP: steps.count}) if steps.handed_on else None


def step_of(
    module: nn.Module, steps: TrainingSteps | None, mask: Geometry | Tensor, given: Mapping[str, Any]
) -> Tensor | None:
    """The training step whose permutations a call takes; None in evaluation.

    The step comes with the layer's arguments, so that a checkpointed layer is computed again with the one it was
    computed with, whatever has been counted in between. In models that pass none on, the geometry keeps it, which
    belongs to one forward pass too.

    Args:
        given: the arguments that reached the attention function by name.
    """
    if steps is None:
        return None
    if _STEP in given:
        return given[_STEP].to("cpu")
    if isinstance(mask, Tensor) or torch.compiler.is_compiling():
        return steps.count if module.training else None
    return mask.__dict__.setdefault("_step", steps.count if module.training else None)


def gated(gates: tuple[Tensor, ...], outputs: list[Tensor]) -> Tensor:
    """The sum of the branches' outputs [batch, heads, q_len, head_dim], each times its gate [batch, q_len, heads].

    Raises:
        NotImplementedError: where a layer has only some of the heads.
    """
    heads = outputs[0].shape[1]
    if gates[0].shape[-1] != heads:
        raise NotImplementedError(
            f"the gates are for {gates[0].shape[-1]} heads, this process has {heads} (tensor parallelism): run a gated "
            "model without it"
        )
    local, random = (gate.transpose(1, 2)[..., None].to(outputs[0].dtype) for gate in gates)
    return torch.addcmul(local * outputs[0], random, outputs[1])
