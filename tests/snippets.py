"""One way to check every fenced block of a page.

python   is run, block by block in one namespace per page; a `text` block right after it is what it prints. Names of
         models on a hub load the bundled model. Pages but those in PASTED may assume `model`, `tokenizer`, `prompt` and
         `inputs`.
sh       every command of it is read by the program's own parser, up to where it would load a model or run: see
         PROGRAMS.
text     stands alone where nothing precedes it: then it is prose. bibtex, yaml: not run.

A block in any other language, or a program that is not in the table, fails.
"""

import ast
import contextlib
import io
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import tomli
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PASTED = ("quickstart.md", "index.md")  # run as they stand
BUNDLED = str(files("sa_eval") / "assets" / "qwen3-tiny")
PLAIN = ("text", "bibtex", "yaml", "pseudocode")


class Reached(Exception):
    """A command got to where it would begin to work."""


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page; a fence that Markdown does not see as one (indented too far) is an error."""
    source = page.read_text(encoding="utf-8")
    found = [
        Block(token.info.strip(), token.content, token.map[0] + 1)
        for token in MarkdownIt().parse(source)
        if token.type == "fence"
    ]
    assert len(re.findall(r"^\s*```", source, re.MULTILINE)) == 2 * len(found), f"{page}: a fence that is none"
    return found


# Python


def assumed() -> dict:
    """What pages may use without loading it: a model, its tokenizer, a prompt of 1,016 tokens and its ids."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sa_eval.tasks import document

    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    prompt = document("needle_single", lambda text: len(tokenizer(text).input_ids), 1024, 0, 0).prompt
    model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
    return {"model": model, "tokenizer": tokenizer, "prompt": prompt, "inputs": tokenizer(prompt, return_tensors="pt")}


@contextlib.contextmanager
def bundled_instead_of_hub(monkeypatch) -> Iterator[None]:
    """`from_pretrained` of an owner/name on a hub loads the bundled model."""
    import transformers

    for kind in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer):
        load = kind.from_pretrained

        def stand_in(name, *args, _load=load, **options):
            return _load(BUNDLED if re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) else name, *args, **options)

        monkeypatch.setattr(kind, "from_pretrained", stand_in)
    yield


def run_python(found: list[Block], page: Path, namespace: dict) -> int:
    """Run a page's python blocks and hold what they print against the text blocks that follow; how many ran."""
    ran = 0
    for place, block in enumerate(found):
        if block.language != "python":
            continue
        said = io.StringIO()
        code = compile("\n" * block.line + block.text, str(page), "exec")
        with contextlib.redirect_stdout(said):
            exec(code, namespace)
        ran += 1
        after = found[place + 1] if place + 1 < len(found) else None
        if after is not None and after.language == "text":
            assert said.getvalue() == after.text, f"{page.name}, line {after.line}: it prints\n{said.getvalue()}"
    return ran


# Shell


def commands(block: Block) -> Iterator[list[str]]:
    """The words of every command, variables that are set before it and comments aside."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        command: list[str] = []
        for word in [*words, "&&"]:
            if word != "&&":
                command.append(word)
                continue
            while command and re.fullmatch(r"\w+=\S*", command[0]):
                command.pop(0)
            if command:
                yield command
            command = []


def check(command: list[str], monkeypatch) -> None:
    """Read a command as its program would.

    Raises:
        AssertionError: for a program that is not known, a flag, name or file that does not exist.
    """
    name, rest = command[0].removeprefix(".venv/bin/"), command[1:]
    if name.startswith(("scripts/", "benchmarks/", ".ci/")):
        assert (ROOT / name).is_file(), f"there is no {name}"
        return
    assert name in PROGRAMS, f"unknown program: {shlex.join(command)}"
    PROGRAMS[name](rest, monkeypatch)


def sa_eval(arguments: list[str], monkeypatch) -> None:
    """Parsed, settings and arms made; then it stops before models, files and folders are touched."""
    from sa_eval import cli
    from sa_eval.commands import COMMANDS, load, run
    from sa_eval.settings.arms import arms_from

    command = arguments[0] if arguments and not arguments[0].startswith("-") else "run"
    if command in ("resume", "report", "compare"):
        load(command).build_parser().parse(arguments[1:])
        return
    if command in COMMANDS and "--version" not in arguments:

        def stop(*_, **__):
            raise Reached

        def arms(settings, **_):
            arms_from(settings)
            raise Reached

        kept = list(arguments)
        if "--plan" in kept:  # the file of a plan is the reader's own
            place = kept.index("--plan")
            del kept[place : place + 2]
        monkeypatch.setattr(load(command), "Progress", stop)
        monkeypatch.setattr(run, "run", arms)
        monkeypatch.setattr(run, "dry_run", arms)
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.suppress(Reached):
            status = cli.main(kept)
            raise AssertionError(f"sa-eval {shlex.join(kept)}: status {status}, {errors.getvalue()}")
        return
    assert arguments == ["--version"], arguments
    assert cli.main(arguments) == 0


def sa_lm_eval(arguments: list[str], monkeypatch) -> None:
    import sa_patch
    from sa_patch.variants import all_options

    assert arguments[:3] == ["run", "--model", "sa"] and "--tasks" in arguments, arguments
    given = dict(item.split("=", 1) for item in arguments[arguments.index("--model_args") + 1].split(","))
    options = {name: ast.literal_eval(value) for name, value in given.items() if name in all_options()}
    assert set(given) == {"pretrained", "mode", *options}
    sa_patch.variant(given["mode"], **options)


def launcher(parse: Callable[[list[str]], tuple[str, list[str], bool]]) -> Callable:
    def checked(arguments: list[str], monkeypatch) -> None:
        script, rest, module = parse(arguments)
        assert module and script == "sa_eval", f"{script} is not run with -m"
        sa_eval(rest, monkeypatch)

    return checked


def accelerate(arguments: list[str]) -> tuple[str, list[str], bool]:
    from accelerate.commands.launch import launch_command_parser

    assert arguments[0] == "launch"
    found = launch_command_parser().parse_args(arguments[1:])
    return found.training_script, found.training_script_args, found.module


def torchrun(arguments: list[str]) -> tuple[str, list[str], bool]:
    from torch.distributed.run import parse_args

    found = parse_args(arguments)
    return found.training_script, found.training_script_args, found.module


def python(arguments: list[str], monkeypatch) -> None:
    """A script of the repository, whose flags it or a module beside it names; or python -m venv."""
    if arguments[:2] == ["-m", "venv"]:
        return
    script = ROOT / arguments[0]
    assert script.is_file(), f"there is no {arguments[0]}"
    sources = "".join(path.read_text(encoding="utf-8") for path in script.parent.glob("*.py"))
    for flag in (word for word in arguments[1:] if word.startswith("--")):
        assert f'"{flag}"' in sources, f"{arguments[0]} has no {flag}"


def pip(arguments: list[str], monkeypatch) -> None:
    """Extras that are installed exist, and so do files."""
    extras = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert arguments[0] == "install"
    for word in arguments[1:]:
        for named in re.findall(r"\[([\w,]+)\]", word):
            assert set(named.split(",")) <= set(extras), f"no such extra: {named}"
        if word.endswith(".txt"):
            assert (ROOT / word).is_file(), f"there is no {word}"


def pytest(arguments: list[str], monkeypatch) -> None:
    own = (ROOT / "tests" / "conftest.py").read_text()
    for word in (word for word in arguments if word.startswith("--") and word != "--dist"):
        assert f'"{word}"' in own, f"the tests have no option {word}"


def files_exist(arguments: list[str], monkeypatch) -> None:
    for word in (word for word in arguments if "/" in word):
        assert (ROOT / word).exists(), f"there is no {word}"


PROGRAMS: dict[str, Callable] = {
    "sa-eval": sa_eval,
    "sa-lm-eval": sa_lm_eval,
    "accelerate": launcher(accelerate),
    "torchrun": launcher(torchrun),
    "python": python,
    "python3": python,
    "pip": pip,
    "pytest": pytest,
    "jupyter": files_exist,
    "zensical": files_exist,
    "pre-commit": files_exist,
}
