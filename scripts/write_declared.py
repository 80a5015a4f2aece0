"""Write the files that repeat the variants' declarations for other readers.

sa_patch/signature.py is for editors and type checkers; docs/variants.md, docs/api/sa_eval.md and docs/kernel-rules.md
are for people; eval/settings/declared.json is for flags and reports, which need no torch. Run it after changing a
variant, a flag, a shipped rule or a kernel's name; a test compares.

    python scripts/write_declared.py
"""

import json
from collections.abc import Iterator
from pathlib import Path

from sa_eval.commands import COMMANDS, load
from sa_eval.settings import declared
from sa_patch import variants
from sa_patch.kernels import KERNELS, rules, steps_text
from sa_patch.variants import NamedMode, all_options, modes, owners
from sa_patch.variants.base import Variant
from sa_patch.variants.options import Option, options_of

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python scripts/write_declared.py"
INTRODUCTION = f"""\
Written by `{COMMAND}` from the declarations in `sa_patch/variants`.

Modes are the names under `mode=` in `sa_patch.apply`, `sa_patch.variant` and `sa-lm-eval`, and under `--modes` in
`sa-eval`. Options are keyword arguments there, flags of `sa-eval` (`--dense-tail`) and keys of its settings files."""


def files() -> dict[Path, str]:
    """Every file that is written, with what belongs into it."""
    return {
        ROOT / "sa_patch" / "signature.py": signature(),
        ROOT / "docs" / "variants.md": page(),
        ROOT / "docs" / "api" / "sa_eval.md": flags_page(),
        ROOT / "docs" / "kernel-rules.md": rules_page(),
        ROOT / "eval" / "settings" / declared.FILE: declared.to_json(declared.of_variants(variants)),
    }


def signature() -> str:
    """Types for the arguments of `sa_patch.apply` and `sa_patch.variant`."""
    lines = [
        '"""Types of the arguments of `sa_patch.apply` and `sa_patch.variant`, for editors and type checkers.',
        "",
        f"Written by `{COMMAND}` from the declarations in sa_patch/variants: not by hand.",
        '"""',
        "",
        "from collections.abc import Sequence",
        "from typing import Literal, TypedDict",
        "",
        *_literal("Mode", list(modes())),
        *_literal("KernelName", ["auto", *KERNELS]),
        "",
        "",
        "class Options(TypedDict, total=False):",
        '    """What `**options` takes; each mode takes those of its variant."""',
    ]
    for option in all_options().values():
        if option.name != "window":  # a parameter of its own
            where = f" ({_whose(option)} only)" if _whose(option) else ""
            lines += ["", f"    {option.name}: {_type(option)}", f'    """{option.help}{where}"""']
    return "\n".join(lines) + "\n"


def _literal(name: str, words: list[str]) -> list[str]:
    return [f"{name} = Literal[", *(f'    "{word}",' for word in words), "]"]


def _type(option: Option) -> str:
    plain = {
        "switch": "bool",
        "integer": "int",
        "amount": "int | float",
        "text": "str",
        "layers": "Sequence[int]",
        "choice": "",
    }
    words = "Literal[" + ", ".join(f'"{word}"' for word in option.words) + "]" if option.words else ""
    return " | ".join(filter(None, [plain[option.kind], words, "None" if option.optional else ""]))


def _whose(option: Option) -> str:
    """Which modes have it, empty when all do."""
    shared = option.name in {item.name for item in options_of(Variant)}
    return "" if shared else " and ".join(owners(option.name))


def page() -> str:
    """docs/variants.md."""
    return "\n".join(
        [
            "# Modes and options",
            "",
            INTRODUCTION,
            "",
            "| mode | what a query sees | is | role |",
            "|---|---|---|---|",
            *(_mode_row(name, mode) for name, mode in modes().items()),
            "",
            "A method is what a comparison asks about; baselines and controls are what it is held against.",
            "",
            "| option | takes | default | meaning | modes |",
            "|---|---|---|---|---|",
            *_option_rows(),
            "",
        ]
    )


def _mode_row(name: str, mode: NamedMode) -> str:
    fixed = ", ".join(f"{key}={value!r}" for key, value in mode.fixed.items())
    return f"| `{name}` | {mode.help} | {f'`{mode.variant.name}`, `{fixed}`' if fixed else ''} | {mode.variant.role} |"


def _option_rows() -> Iterator[str]:
    takes = {
        "switch": "True or False",
        "integer": "a whole number",
        "amount": "a whole number, or a fraction between 0 and 1",
        "text": "text",
        "layers": "layer numbers",
        "choice": "",
    }
    for option in all_options().values():
        words = ", ".join(f"`{word}`" for word in (*option.words, *(["None"] if option.optional else [])))
        value = " or ".join(filter(None, [takes[option.kind], words]))
        yield f"| `{option.name}` | {value} | `{option.default!r}` | {option.help} | {_whose(option) or 'all'} |"


def flags_page() -> str:
    """docs/api/sa_eval.md: every flag of every command, once, with the commands that take it."""
    found: dict[str, dict[str, list[str]]] = {}
    lines = [
        "# sa-eval",
        "",
        f"Written by `{COMMAND}` from the commands' own parsers; `--help` of each has examples.",
        "",
    ]
    lines += [
        "| command | does |",
        "|---|---|",
        *(f"| `sa-eval {name}` | {load(name).HELP} |" for name in COMMANDS),
        "",
    ]
    for name in COMMANDS:
        for action in load(name).build_parser()._actions:
            flag = ", ".join(f"`{one}`" for one in action.option_strings) or f"`{action.metavar or action.dest}`"
            text = " ".join((action.help or "").replace("%%", "%").split()).replace("|", "\\|")
            if action.dest != "help":
                found.setdefault(flag, {}).setdefault(text, []).append(name)
    lines += ["## Flags", "", "| flag | commands | meaning |", "|---|---|---|"]
    for flag, meanings in sorted(found.items()):
        lines += [f"| {flag} | {', '.join(names)} | {text} |" for text, names in meanings.items()]
    return "\n".join([*lines, ""])


def rules_page() -> str:
    """docs/kernel-rules.md: which kernel `auto` runs by the rules that are shipped."""
    lines = [
        "# Shipped rules",
        "",
        f'Written by `{COMMAND}` from `sa_patch/kernels/measured`. What `kernel="auto"` runs',
    ]
    lines += [
        "where `sa-eval tune` has not measured anything else; [kernels](kernels.md) says what follows from it.",
        "",
    ]
    for path in sorted(Path(rules.__file__).parent.glob("measured/*.json")):
        held = json.loads(path.read_text(encoding="utf-8"))
        lines += [f"## {held['device']}", "", f"It was {held['source']}: {held['how']}.", ""]
        lines += ["| dtype | head_dim | layout of the keys | kernel by prompt length |", "|---|---|---|---|"]
        for entry in held["entries"]:
            for layout, steps in entry["kernels"].items():
                shape = f"{entry['dtype'] or 'any other'} | {entry['head_dim'] or 'any'}"
                lines.append(f"| {shape} | {'any other' if layout == 'any' else layout} | {steps_text(steps)} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
