"""`sa-eval tune`: its flags, and what it prints; `sa_patch.tune` does the work.

Heavy imports wait inside functions, so that --help and bad arguments answer at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sa_eval.commands.flags import add_flag
from sa_eval.commands.parser import Parser
from sa_eval.messages import one_line
from sa_eval.processes import interrupts
from sa_eval.progress import Progress
from sa_eval.settings import presets
from sa_eval.settings.setting import setting, settings_of
from sa_eval.settings.values import SettingsError

HELP = "find the fastest right kernels on this device, for `kernel: auto` (a minute, once)"
DESCRIPTION = """\
Find out which kernel is right and fastest on this device, once; `--kernel auto`, `--dense-below crossover` and
`sa_patch.apply` follow it from then on. Answers stay the same to rounding: choosing never changes which keys are seen.
"""
EXAMPLES = """\
examples
  sa-eval tune                                              a GPU where there is one, else the CPU, at usual shapes
  sa-eval tune --model Qwen/Qwen3-8B --device cuda          the heads and head_dim of a model; no weights are loaded
  sa-eval tune --device cuda --dtype bfloat16 --head-dim 128 --heads 32 --kv-heads 8 --seconds 180
  sa-eval tune --lengths 4096,65536 --window 256,1024 --kernels torch,triton
"""
DETAILS = """\
how it is done
  Every kernel that does not refuse is first held against the reference on small prompts of every mode, with the bound
  of the tests. One that is wrong anywhere is never taken, and reported. Those that are right are then timed beside full
  attention (the fastest there is), in turns, and medians are kept with their range. A kernel takes the place of the
  default only where its slowest reading is faster than the default's fastest, and is nowhere slower by that much.
  Where a budget ends early, defaults stay; what was left out is listed. Triton and FlexAttention compile programs in 4
  to 20 s each when they are first used, and keep them on disk: a second run gets further.

what comes out
  A file of rules with its figures, in ~/.cache/sa_patch/rules (XDG_CACHE_HOME and SA_PATCH_HOME move it), one per
  device, driver, torch, triton and sa_patch version: with any other it is not used, and Patch.describe() says so. It
  holds rules for several shapes and dtypes; tuning one again replaces its own. To undo it, delete the file. A run's
  manifest names the rules that it followed. Nothing leaves the machine.

exit status
  0 all went well   1 a kernel was wrong or failed on this device   2 refused: bad arguments   130, 143 interrupted:
  nothing was written
"""


@dataclass(frozen=True)
class TuneSettings:
    """What `sa-eval tune` can be asked."""

    model: str | None = setting(None, "take heads, head_dim and dtype from this model: a name, folder or hub id")
    shape: str | None = setting(
        None, f"take them from this config.json, or a shipped one by name ({', '.join(presets.shapes())})"
    )
    device: str = setting("auto", "auto, cpu, cuda, cuda:1")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "auto: the model's, or bfloat16; float32 on a CPU"
    )
    heads: int | None = setting(None, "query heads of a layer (default: 32; 8 on a CPU)", minimum=1, maximum=1024)
    kv_heads: int | None = setting(None, "key heads of a layer (default: 8; 2 on a CPU)", minimum=1, maximum=1024)
    head_dim: int | None = setting(None, "size of a head (default: 128; 64 on a CPU)", minimum=1, maximum=4096)
    lengths: tuple[int, ...] = setting(
        (), "prompt lengths in tokens (default: 1024 to 32768; 256 to 4096 on a CPU)", minimum=1, maximum=1 << 22
    )
    window: tuple[int, ...] = setting((), "keys per query (default: 128,512; 64,256 on a CPU)", minimum=1)
    kernels: tuple[str, ...] = setting((), "kernels to try beside torch (default: all)")
    seconds: int = setting(60, "budget of time", minimum=1, maximum=86_400)
    threads: int | None = setting(None, "CPU threads of torch (default: what it may use)", minimum=1, maximum=1024)
    out: str | None = setting(None, "write the rules to this file instead, where nothing follows them (default: none)")


def main(arguments: Sequence[str]) -> int:
    namespace = build_parser().parse(arguments)
    known = settings_of(TuneSettings)
    given = {name: value for name, value in vars(namespace).items() if name in known and value is not None}
    asked = TuneSettings(**{name: known[name].checked(value) for name, value in given.items()})
    if asked.model is not None and asked.shape is not None:
        raise SettingsError("model and shape were both given: each says what heads there are; drop one")
    with interrupts.sigterm_stops():
        try:
            return _tune(asked, Progress(verbose=namespace.verbose))
        except KeyboardInterrupt as stop:
            print("sa-eval: interrupted, no rules were written")
            return interrupts.status(stop)


def _tune(asked: TuneSettings, progress: Progress) -> int:
    with progress.quiet():
        from sa_eval.speed import layer_tensors
        from sa_patch.tuning import tune

        layer_tensors.use_threads(asked.threads)
        more = {name: getattr(asked, name) for name in ("heads", "kv_heads", "head_dim") if getattr(asked, name)}
        settings = {**layer_tensors.of_model(asked.model, asked.shape, asked.device, asked.dtype), **more}
    with progress.bar(asked.seconds, "tune", unit="s") as bar, progress.quiet():
        shown = 0

        def tell(text: str, seconds: float) -> None:
            nonlocal shown
            whole = min(asked.seconds, int(seconds))
            bar.describe(text[:60])
            bar.advance(whole - shown)
            shown = whole

        try:
            tuned = tune(
                device=None if asked.device == "auto" else asked.device,
                lengths=asked.lengths or None,
                windows=asked.window or None,
                kernels=asked.kernels or None,
                seconds=asked.seconds,
                out=asked.out,
                progress=tell,
                **settings,
            )
        except (ValueError, OSError) as error:
            raise SettingsError(one_line(error)) from error
    print(f"\n{tuned}")
    return 1 if tuned.wrong else 0


def build_parser() -> Parser:
    parser = Parser("sa-eval tune", f"{DESCRIPTION}\n{EXAMPLES}", DETAILS)
    for known in settings_of(TuneSettings).values():
        add_flag(parser, known)
    parser.add_argument("--verbose", action="store_true", help="let the libraries' logs through")
    return parser
