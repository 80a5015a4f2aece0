"""What a trained model is measured on: held-out pages, token by token, and questions of the synthetic language."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoModelForCausalLM

import sa_patch

from .arms import patched
from .settings import Run, Settings

MEASURED = "measured.npz"
_CONTEXTS = (16, 64, 128, 256, 512)
_LAST = 32  # tokens of a page that are predicted from so many before them only
UNTRAINED = ("swa", "swa-sink", "sa", "sa+swa")  # what the model trained with full attention is also read with


def measure(settings: Settings, run: Run, out: Path) -> None:
    """Write what a trained run reaches; nothing is done where it is written."""
    folder = out / run.name
    _measure_once(folder / MEASURED, settings, run, out)
    if run.attention == "full":
        for window in settings.window:
            for name in UNTRAINED:
                other = Run(name, window, run.seed)
                _measure_once(folder / f"untrained-{other.name}.npz", settings, run, out, other)


def _measure_once(file: Path, settings: Settings, run: Run, out: Path, other: Run | None = None) -> None:
    if file.exists():
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if (file.parent / "sa_patch.json").exists():
        model = sa_patch.from_pretrained(file.parent)
    else:
        model = AutoModelForCausalLM.from_pretrained(file.parent)
        patched(model, other or run, settings.resample)
    found = results(model.to(device).eval(), np.load(out / "held_out.npz"), f"{run.name}: {file.stem}")
    temporary = file.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, **found)
    temporary.replace(file)


@torch.no_grad()
def results(model: nn.Module, held: Any, title: str) -> dict[str, np.ndarray]:
    """losses [pages, length - 1] in nats; context [pages, contexts]: of a page's last tokens, when all but so many
    before them are another page's; right [questions], and gates [2, layers, heads] of a gated model."""
    device = next(model.parameters()).device
    half = torch.autocast(device.type, torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()
    with half, _watched_gates(model) as gates:
        pages = [torch.from_numpy(page.astype(np.int64)).to(device) for page in held["pages"]]
        losses = [_losses(model, ids) for ids in tqdm(pages, desc=title, unit="page", leave=False)]
        of_gates = {name: np.stack([np.mean(layer, axis=0) for layer in layers]) for name, layers in gates.items()}
        context = [
            [_losses(model, _of_two(other, ids, size))[-_LAST:].mean() for size in contexts(len(ids))]
            for other, ids in zip(
                tqdm([*pages[1:], pages[0]], desc=title, unit="page", leave=False), pages, strict=True
            )
        ]
        right = []
        sizes = zip(held["questions"], held["prompt_len"], held["answer_len"], strict=True)
        for row, prompt, answer in tqdm(sizes, total=len(held["questions"]), desc=title, unit="question", leave=False):
            ids = torch.from_numpy(row[: prompt + answer].astype(np.int64)).to(device)
            guess = model(ids[None], use_cache=False, logits_to_keep=int(answer) + 1).logits[0, :-1].argmax(-1)
            right.append(bool((guess == ids[prompt:]).all()))
    of_pages = {"losses": np.array(losses, dtype=np.float32), "context": np.array(context, dtype=np.float32)}
    return {**of_pages, "right": np.array(right, dtype=bool), **of_gates}


def contexts(length: int) -> tuple[int, ...]:
    """Tokens of its own before the last ones of a page; at the end, all there are."""
    return *(size for size in _CONTEXTS if size < length - _LAST), length - _LAST


def _of_two(other: torch.Tensor, ids: torch.Tensor, size: int) -> torch.Tensor:
    """`ids` with another page's tokens in front: as long as before, so that a pattern shows the same places."""
    start = len(ids) - _LAST - size
    return torch.cat([other[:start], ids[start:]])


def _losses(model: nn.Module, ids: torch.Tensor) -> np.ndarray:
    """Of every token but the first, in nats."""
    logits = model(ids[None], use_cache=False).logits[0, :-1].float()
    return F.cross_entropy(logits, ids[1:], reduction="none").cpu().numpy()


@contextlib.contextmanager
def _watched_gates(model: nn.Module):
    """name -> per layer, the gates' means over tokens of every call: lists of arrays [heads]."""
    seen: dict[str, list[list[np.ndarray]]] = {}
    handles = []
    for name, module in model.named_modules():
        kind = name.rpartition(".")[2]
        if kind in ("gate_swa", "gate_sa"):
            own: list[np.ndarray] = []
            seen.setdefault(kind, []).append(own)

            def note(_, __, output, own=own) -> None:
                own.append(output.float().sigmoid().mean((0, 1)).cpu().numpy())

            handles.append(module.register_forward_hook(note))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def evidence_distance(pages: np.ndarray) -> np.ndarray:
    """For every predicted token: tokens back to where its pair with the token before it was last seen; 0: never.

    int64 [pages, length - 1]. Such a token can be copied by whoever sees that place.
    """
    found = np.zeros((pages.shape[0], pages.shape[1] - 1), dtype=np.int64)
    for row, page in enumerate(pages):
        last: dict[tuple[int, int], int] = {}
        for place in range(1, len(page)):
            pair = int(page[place - 1]), int(page[place])
            if pair in last:
                found[row, place - 1] = place - last[pair]
            last[pair] = place
    return found
