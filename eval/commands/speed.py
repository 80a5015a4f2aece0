"""`sa-eval speed`: its flags, and what it prints. Heavy imports wait until they are needed."""

from __future__ import annotations

from collections.abc import Sequence

from sa_eval.commands.flags import add_flag, modes_text
from sa_eval.commands.parser import Parser
from sa_eval.settings.config import known_settings
from sa_eval.settings.setting import settings_of
from sa_eval.speed.settings import DEFAULTS, SpeedSettings, shared, speed_settings

HELP = "measure speed and memory: time to first token, tokens per second, peak memory, beside full"
DESCRIPTION = """\
Measure what a model takes to read a prompt and to go on from it, with its own attention (full, always there), with
every sparse variant asked for, and with no attention at all (none, always there): a floor that no method can beat.
"""
EXAMPLES = """\
examples
  sa-eval speed                                     the bundled model at 512, 1024 and 2048 tokens: under a minute
  sa-eval speed --modes swa,sa,moba --window 128,512 --lengths 1024,2048,4000
  sa-eval speed --modes sa-dyadic --decode full,sparse --new-tokens 128        decoding from few keys, too
  sa-eval speed --model Qwen/Qwen3-8B --device cuda --dtype bfloat16 --lengths 8192,32768 --window 512 --batch-size 4
  sa-eval speed --shape qwen3-8b --device cuda --dtype bfloat16 --lengths 32768,65536,131072 \\
                --window 512 --repeats 3            the real shape without the weights: speed does not depend on them
  sa-eval speed --random-weights --lengths 8192 --threads 1 --cpu-time         on a machine that others keep busy
"""
DETAILS = """\
how it is measured
  Time to first token: from the call of the model's own greedy generate until the first token is on the host. Tokens
  per second: the tokens after it, in the same call. Arms take turns. In each, the model is patched (not timed), warmed
  up by one call of the same length, timed and restored; medians count, all repeats are kept, and so is what the first
  call took. Peak memory is what torch's allocator held beyond the weights; on a CPU it is read in a call of its own.
  Random weights: as fast as trained ones, except that moba's blocks are chosen by content. They may be longer than the
  model's positions.

what comes out (in --out, default speed/<time>-<model>)
  a table here; speed.json (every repeat, settings, versions, hardware); speed.csv; speed.png and speed.svg

exit status
  0 all went well   1 finished, but an arm failed (its row says why)   2 bad arguments   130 interrupted
"""
CHANGED = {
    "batch_size": "rows of the same prompt per call",
    "out": "directory of the result (default: speed/<time>-<model>)",
    "lengths": "prompt lengths in tokens",
}


def main(arguments: Sequence[str]) -> int:
    namespace = build_parser().parse(arguments)
    given = {name: value for name, value in vars(namespace).items() if name != "verbose" and value is not None}
    asked = speed_settings(given)
    from sa_eval.progress import Progress

    progress = Progress(verbose=namespace.verbose)
    with progress.quiet():
        from sa_eval.loading import model_files
        from sa_eval.speed import course, outputs
    with model_files.code_kept_out(asked.of):
        result, directory = course.run(asked, progress)
    print(f"\n{outputs.table(result)}\n\nresult: {directory.path}")
    if result["interrupted"]:
        return 130
    return 1 if result["failures"] else 0


def build_parser() -> Parser:
    parser = Parser("sa-eval speed", f"{DESCRIPTION}\n{modes_text()}\n{EXAMPLES}", DETAILS)
    for name, setting in known_settings().items():
        if name in shared():
            default = DEFAULTS.get(name, setting.default)
            add_flag(parser, setting, help=CHANGED.get(name, setting.help), default=default)
    for setting in settings_of(SpeedSettings).values():
        add_flag(parser, setting)
    parser.add_argument("--verbose", action="store_true", help="let the libraries' logs through")
    return parser
