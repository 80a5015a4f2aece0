"""What a reader must know to read the tables right, computed from the results."""

from __future__ import annotations

from sa_eval.results.answer import joined, points, pooled
from sa_eval.results.gates import cut_shares
from sa_eval.results.types import Results
from sa_eval.settings import roles


def notes(results: Results) -> list[str]:
    """What ran, what was tested and how much luck is in it; nothing that does not apply to this run."""
    return [*_what_ran(results), *_what_was_tested(results), *_luck(results)]


def _what_ran(results: Results) -> list[str]:
    found = []
    scored = [task.name for task in results.tasks if task.output != "generate_until"]
    if scored:
        names = ", ".join(dict.fromkeys(scored))
        found.append(f"Scored by log-likelihood, so only prefill is exercised: {names}.")
    if len(scored) < len(results.tasks):
        sparse = [arm for arm in results.arms if arm.mode != "full"]
        decode = joined(sorted({arm.options.get("decode", "full") for arm in sparse}) or ["full"])
        read = " (new tokens read the whole cache)" if decode == "full" else ""
        found.append(f"Generated answers: prefill is sparse, decode is {decode}{read}.")
    cut = [f"{arm} {share:.0%}" for arm, share in cut_shares(results).items()]
    if any(cut_shares(results).values()):
        found.append(f"The limit of new tokens cut a share of the answers: {', '.join(cut)}.")
    for mode in dict.fromkeys(arm.mode for arm in results.arms):
        if roles.caveat(mode):
            found.append(f"{mode} is {roles.caveat(mode)}.")
    if any(arm.dense_tail for arm in results.arms):
        found.append("A dense tail comes on top of the window: keys per query are measured with it.")
    return found


def _what_was_tested(results: Results) -> list[str]:
    families = [
        (results.to_full, "to full"),
        (results.between_arms, "between variants at one budget"),
    ]
    counted = [
        f"{family.tests:,} difference{'s' if family.tests > 1 else ''} {what} (at {family.level:.2g} each)"
        for family, what in families
        if family.tests
    ]
    if not counted:
        return []
    return [
        f"Significant means p < 0.05 after Holm's correction over the {' and, apart from them, the '.join(counted)} "
        "of this run. A difference's interval holds every true difference that its test does not reject at that level: "
        "0 is in it exactly where nothing is significant. Detectable differences are found with power 0.8."
    ]


def _luck(results: Results) -> list[str]:
    """Seeds and documents are two sources of chance: which of them is larger decides what to add more of."""
    seeds = next((arm.seeds for arm in results.arms if len(arm.seeds) > 1), None)
    if seeds is None or not results.cells:
        return []
    cells = [cell for cell in pooled(results, ("overall",)) if cell.seeds_vary_more is not None]
    found = [
        f"Stochastic arms: a document's score is its mean over seeds {joined(list(map(str, seeds)))}, and intervals "
        "are about other documents, not about other seeds."
    ]
    varying = [
        f"{cell.arm} (SD {points(cell.seed_sd, sign=False)} points)"
        for cell in cells
        if cell.seeds_vary_more and cell.seed_sd is not None
    ]
    if varying:
        found.append(
            f"Seeds differ by more than the choice of documents explains: {_few(varying)}. The intervals are too "
            "narrow for a claim about other seeds: add seeds."
        )
    elif cells:
        found.append("Seeds differ by no more than the choice of documents explains.")
    return found


def _few(items: list[str], most: int = 6) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
