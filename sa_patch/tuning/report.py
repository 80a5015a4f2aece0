"""What a search found, in words."""

from pathlib import Path

from sa_patch import kernels, machine
from sa_patch.tuning.choosing import FULL, crossovers
from sa_patch.tuning.search import Search
from sa_patch.tuning.writing import entry

_MOST_LEFT_OUT = 6


def text(search: Search, spent: float, path: Path) -> str:
    """The device, the choice per layout with its figures, what was wrong, refused or left out, and the file."""
    shape, found = search.shape, entry(search)
    heads = f"{shape.heads} heads on {shape.kv_heads} kv heads of {shape.head_dim}"
    said = [f"{machine.identity(shape.device).name}, {found['dtype']}, {heads}: {spent:.1f} s", ""]
    limits = crossovers(search.cells, search.choices(strict=True))
    said += [f"  {'layout':<11}kernel"]
    said += [f"  {layout:<11}{kernels.steps_text(steps)}{_figures(search, layout)}" for layout, steps in
             found["kernels"].items()]  # fmt: skip
    said += ["", "  faster than full beyond, by window"]
    for layout, (windows, tokens) in limits.items():
        known = ", ".join(f"w={window}: {max(windows * window, tokens):,} tokens" for window in search.windows)
        said.append(f"  {layout:<11}{known}")
    said += [f"\n  WRONG on this device, never taken: {name}: {reason}" for name, reason in search.wrong().items()]
    said += [f"  refused: {name}: {reason}" for name, reason in search.refusals().items()]
    said += [f"  sizes of {name}: {sizes}" for name, sizes in search.tiles.items()]
    if search.left_out:
        more = len(search.left_out) - _MOST_LEFT_OUT
        said += ["", "  left out, for lack of time unless another reason stands there (run it again: what was compiled"]
        said += ["  is kept; or give more seconds)"]
        said += [f"    {line}" for line in search.left_out[:_MOST_LEFT_OUT]]
        said += [f"    and {more} more: the file has them"] if more > 0 else []
    return "\n".join([*said, "", f"rules: {path}"])


def _figures(search: Search, layout: str) -> str:
    """Times as fast as full at the longest prompt that was read."""
    cells = [cell for cell in search.cells if cell.layout == layout and not cell.pieces]
    choices, found = search.choices(strict=True), []
    for window in search.windows:
        here = [cell for cell in cells if cell.window == window]
        read = [cell for cell in here if choices.get((layout, cell.length)) in cell.readings]
        if read:
            cell = max(read, key=lambda cell: cell.length)
            mine = cell.readings[choices[layout, cell.length]]
            found.append(f"{cell.readings[FULL].ms / mine.ms:.1f}x full at {cell.length:,}, w={window}")
    return f" ({'; '.join(found)})" if found else ""
