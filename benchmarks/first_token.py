"""Is what stochastic attention wins on short prompts the first token, which it keeps by chance? LAMBADA and PIQA.

    python scripts/get_smollm2.py FOLDER
    python benchmarks/first_token.py --model FOLDER --data DATA --out OUT

DATA holds `lambada_test.jsonl` (key text) and `piqa_valid.jsonl` (keys goal, sol1, sol2, label). Compared are a sliding
window and sa, each with 0, 1 and 4 sinks charged to its budget, and `sa-without-first`: sa that may never see the first
token and shows at least as many pairs. Three seeds. Beside accuracy stands what moves before an answer flips: the
log-likelihood of the right word (LAMBADA), or by how much it is above the wrong choice's (PIQA).

OUT gets first_token.json and the records; the same command again continues where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import torch
from real_model_tasks import FILES, run_arms
from scipy import stats

import sa_patch
from sa_eval import environment
from sa_eval.loading import models, sources
from sa_eval.progress import Progress
from sa_eval.records import views
from sa_eval.records.directory import RunDirectory
from sa_eval.records.types import FULL, Record
from sa_eval.results.significance import holm
from sa_eval.settings.arm import Arm
from sa_eval.settings.config import settings_from
from sa_patch.counting import band_pairs
from sa_patch.geometry import Group
from sa_patch.intervals import of_mean
from sa_patch.kept import kept_order
from sa_patch.patterns import Band, Pattern
from sa_patch.variants.stochastic import Stochastic

SEEDS = (0, 1, 2)
WINDOWS = {"lambada": (64, 48, 32, 16), "piqa": (16, 32)}
SINKS = {"lambada": (0, 1, 4), "piqa": (0, 1)}
WITHOUT = "sa-without-first"
EXCESS = ((0, 0), (1, 16), (17, 32), (33, None))  # tokens of the prompt beyond the window


@dataclass(frozen=True, kw_only=True)
class WithoutFirst(Stochastic):
    """sa over the tokens after the first, which nobody but itself sees.

    The band is as wide as it has to be to show at least as many pairs as sa, as long as the prompt has them. The first
    token lies `width` ranks away from all others: the ranks between are those of tokens that never come.
    """

    name: ClassVar[str] = WITHOUT
    label: ClassVar[str] = "sa that never sees the first token"

    def sparse_pattern(
        self, group: Group, layer_idx: int, query: torch.Tensor | None, key: torch.Tensor | None
    ) -> Pattern:
        sizes, length = self.sizes(group.length), group.length
        if sizes.window >= length:
            return self.dense(group)
        width, pairs = sizes.window, band_pairs(length, sizes.window)
        while width < length - 1 and band_pairs(length - 1, width) + 1 < pairs:
            width += 1
        order = kept_order(length, self.seed, layer_idx, 0, None, group.device)
        never = torch.arange(length, length + width - 1, device=group.device)
        order = torch.cat([order.new_zeros(1), never, order[order > 0]])
        return Band(width=width, order=order, **self.common(group, sizes))


def arms(task: str) -> Iterator[Arm]:
    for window in WINDOWS[task]:
        for mode in ("swa", "sa"):
            for sinks in SINKS[task]:
                name = f"{mode}-w{window}" + (f"-sinks{sinks}" if sinks else "")
                options = {"sinks": sinks} if sinks else {}
                yield Arm(name, name, mode, window, seeds=SEEDS if mode == "sa" else (0,), options=options)
        yield Arm(f"{WITHOUT}-w{window}", WITHOUT, WITHOUT, window, seeds=SEEDS)


def contrasts(task: str) -> Iterator[tuple[str, int, str, str]]:
    """(what is asked, window, arm, base) of every comparison."""
    for window in WINDOWS[task]:
        for sinks in SINKS[task]:
            end = f"-w{window}" + (f"-sinks{sinks}" if sinks else "")
            yield f"sa - swa, {sinks} sinks", window, f"sa{end}", f"swa{end}"
        without = f"{WITHOUT}-w{window}"
        yield "sa without the first token - sa", window, without, f"sa-w{window}"
        yield "sa without the first token - swa", window, without, f"swa-w{window}"


@dataclass(frozen=True)
class Answers:
    """What an arm made of every document, the mean over its seeds, in one order.

    Attributes:
        right: 1 for a right answer; likelihood: log-likelihood of the right answer, PIQA: above the wrong one's.
    """

    right: list[float]
    likelihood: list[float]


def answers(task: str, records: Sequence[Record]) -> dict[str, Answers]:
    found: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for record in records:
        output = record.output
        if task == "piqa":
            told = [float(one) for one in output]
            right = int(str(record.expected))
            likelihood = told[right] - told[1 - right]
        else:
            likelihood = float(output[0])
        found.setdefault(record.arm, {}).setdefault(record.index, []).append((record.score, likelihood))
    return {
        arm: Answers(*([fmean(one[k] for one in documents[index]) for index in sorted(documents)] for k in (0, 1)))
        for arm, documents in found.items()
    }


def compare(task: str, found: dict[str, Answers], lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Paired differences of both measures, p-values corrected over all comparisons of a task and measure."""
    rows = []
    for measure in ("right", "likelihood"):
        own = []
        for asked, window, arm, base in contrasts(task):
            pairs = list(zip(getattr(found[arm], measure), getattr(found[base], measure), strict=True))
            differences = [one - other for one, other in pairs]
            low, high = of_mean(differences, low=-float("inf"))
            spread = float(stats.tstd(differences)) if any(differences) else 0.0
            p_value = float(stats.ttest_1samp(differences, 0.0).pvalue) if spread else 1.0
            own.append(
                {
                    "task": task,
                    "measure": measure,
                    "asked": asked,
                    "window": window,
                    "difference": fmean(differences),
                    "interval": [low, high],
                    "p": p_value,
                    # a mean of log-likelihoods is ruled by the worst documents; these count documents
                    "better": sum(one > 0 for one in differences),
                    "worse": sum(one < 0 for one in differences),
                    "by_excess": _by_excess(differences, lengths, window),
                    # found in four of five such samples at the level of a single test of this family
                    "detectable": _detectable(spread, len(differences), sum(1 for _ in contrasts(task))),
                }
            )
        for row, adjusted in zip(own, holm([row["p"] for row in own]), strict=True):
            rows.append({**row, "p_adjusted": adjusted})
    return rows


def _detectable(spread: float, documents: int, tests: int) -> float:
    """The smallest true difference that is significant after Holm's first step in 80 of 100 samples (normal)."""
    both = stats.norm.ppf(1 - 0.05 / tests / 2) + stats.norm.ppf(0.8)
    return float(both) * spread / documents**0.5


def _by_excess(differences: Sequence[float], lengths: Sequence[int], window: int) -> list[dict[str, Any]]:
    """The differences by how many tokens of the prompt lie beyond the window."""
    groups = []
    for least, most in EXCESS:
        inside = [
            one
            for one, length in zip(differences, lengths, strict=True)
            if least <= max(0, length - window) <= (most if most is not None else length)
        ]
        if inside:
            low, high = of_mean(inside, low=-float("inf"))
            groups.append(
                {"from": least, "to": most, "documents": len(inside), "mean": fmean(inside), "interval": [low, high]}
            )
    return groups


def main() -> None:
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_DATASETS_CACHE", str(options.out / "cache"))
    sa_patch.VARIANTS[WITHOUT] = WithoutFirst
    progress = Progress()
    settings = settings_from(
        {
            "model": str(options.model),
            "dtype": options.dtype,
            "threads": options.threads,
            "batch_size": options.batch_size,
        }
    )
    with progress.step(f"loading {options.model}"):
        loaded = models.load(sources.find(settings.model), settings)
    results: dict[str, Any] = {
        "model": loaded.identity.to_dict(),
        "versions": environment.versions(),
        "seeds": len(SEEDS),
        "tasks": {},
        "arms": [],
        "differences": [],
    }
    for task in FILES:
        directory: RunDirectory = run_arms(task, list(arms(task)), loaded, settings, options, progress)
        records = [record for record in views.winning(directory.records()) if record.error is None]
        found = answers(task, records)
        of_full = {record.index: record.prompt_tokens or 0 for record in records if record.arm == FULL}
        lengths = [of_full[index] for index in sorted(of_full)]
        results["tasks"][task] = {"documents": len(lengths), "mean_tokens": fmean(lengths)}
        results["arms"] += [
            {"task": task, "arm": arm, "right": fmean(one.right), "likelihood": fmean(one.likelihood)}
            for arm, one in found.items()
        ]
        results["differences"] += compare(task, found, lengths)
        (options.out / "first_token.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(told(results))


def told(results: dict[str, Any]) -> str:
    lines = ["task     window  asked                             measure     difference (95 %)            p, Holm"]
    for row in results["differences"]:
        scale = 100 if row["measure"] == "right" else 1
        low, high = row["interval"]
        figures = f"{scale * row['difference']:+.2f} ({scale * low:+.2f} to {scale * high:+.2f})"
        lines.append(
            f"{row['task']:8s} {row['window']:6d}  {row['asked']:32s}  {row['measure']:10s}  {figures:27s}  "
            f"{row['p_adjusted']:.3f}"
        )
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a causal language model")
    parser.add_argument("--data", type=Path, required=True, help="folder with the files named above")
    parser.add_argument("--out", type=Path, default=Path("runs/first-token"), help="folder of the results")
    parser.add_argument("--documents", type=int, default=200, help="of each task, its first ones")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtype", default="float32", help="bfloat16 is twice as fast on a CPU that has it")
    options = parser.parse_args()
    for name in FILES.values():
        if not (options.data / name).is_file():
            parser.error(f"{options.data / name} is missing: --data needs the files named above")
    return options


if __name__ == "__main__":
    main()
