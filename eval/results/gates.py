"""Gates: what would make a result mean less than it seems, checked on every run and always shown.

Each gate reads results and answers passed, warning (read the numbers with this in mind) or
failed (something did not run as it should). A gate that passed is listed too: a reader sees what was looked at.
"""

from __future__ import annotations

from collections.abc import Iterable

from sa_eval.records.types import FULL, Budget, Failure
from sa_eval.results.cells import same_budget
from sa_eval.results.types import Answered, Cell, Gate, Length, Results, Status
from sa_eval.settings import roles

DENSE_ENOUGH = 0.9  # at this density equality with full says nothing
MATCHED_TO = "swa"  # the mode whose measured budget the others are held against
TOLERANCE = 0.05  # measured budgets further apart than this are not matched
FLOOR = 0.5  # below this, full attention itself cannot do the task
EMPTY = 0.05  # so many more empty answers than full attention's are not chance
CUT = 0.02  # a difference in answers cut at the limit of new tokens that can be taken for one in accuracy
SEVERITY: tuple[Status, ...] = ("failed", "warning", "passed")


def gates(results: Results) -> list[Gate]:
    """Every gate, worst first."""
    return sorted((check(results) for check in GATES), key=lambda gate: SEVERITY.index(gate.status))


def _gate(name: str, where: Iterable[str], bad: str, good: str, status: Status = "warning") -> Gate:
    found = list(dict.fromkeys(where))
    return Gate(name, status, bad, found) if found else Gate(name, "passed", good)


def _where(arm: str, length: Length, family: str = "") -> str:
    """Which arm at which length, and on which family."""
    at_length = "" if length == "all" else " at own lengths" if length is None else f" at {length}"
    return f"{arm}{f' on {family}' if family else ''}{at_length}"


def _cell(cell: Cell) -> str:
    return _where(cell.arm, cell.length, "" if cell.scope == "overall" else cell.name)


def _above_full(results: Results) -> Gate:
    where = [
        f"{_cell(cell)} ({100 * cell.versus_full.value:+.1f} points)"
        for cell in results.cells
        if cell.versus_full is not None and cell.versus_full.verdict == "better"
    ]
    bad = "Significantly above full attention, which deserves suspicion: fewer keys rarely help."
    return _gate("sparse above full", where, bad, "No arm is significantly above full attention.")


def _full_floor(results: Results) -> Gate:
    where = [
        f"{_cell(cell)} ({100 * cell.accuracy:.1f} %)" for cell in weak_cells(results.cells) if cell.scope != "task"
    ]
    bad = "Full attention itself is weak here, so nothing is learned about what a variant costs."
    return _gate(
        "full below floor", where, bad, f"Full attention is right at least {FLOOR:.0%} of the time everywhere."
    )


def weak_cells(cells: Iterable[Cell]) -> list[Cell]:
    """Where full attention itself fails."""
    return [cell for cell in cells if cell.arm == FULL and cell.accuracy < FLOOR]


def _density(results: Results) -> Gate:
    where = [
        f"{_where(row.arm, row.length)} ({row.density:.2f})"
        for row in results.budgets
        if row.arm != FULL and row.density >= DENSE_ENOUGH
    ]
    bad = f"Nearly full attention (density at least {DENSE_ENOUGH}), so equality with it means nothing."
    return _gate("density near 1", where, bad, f"Every sparse arm sees less than {DENSE_ENOUGH:.0%} of full's pairs.")


def _budgets(results: Results) -> Gate:
    """Against swa with the same window where there is one, against the window asked for otherwise."""
    where = []
    for row in results.budgets:
        off = _off_target(results, row)
        if row.density < DENSE_ENOUGH and abs(off) > TOLERANCE:
            where.append(f"{_where(row.arm, row.length)} ({off:+.0%} keys per query)")
    bad = f"Measured keys per query differ by more than {TOLERANCE:.0%} from swa at the same window: not a fair match."
    return _gate("budget unmatched", where, bad, f"Measured budgets match within {TOLERANCE:.0%}.")


def _off_target(results: Results, row: Budget) -> float:
    """How far an arm's keys per query are from those it is held against, as a share of these."""
    arm = next(arm for arm in results.arms if arm.name == row.arm)
    if arm.mode in (FULL, MATCHED_TO):
        return 0.0
    windows = {other.name for other in results.arms if other.mode == MATCHED_TO and same_budget(arm, other)}
    bases = (other for other in results.budgets if other.arm in windows and other.length == row.length)
    base = next(bases, None)
    return row.off_target if base is None else row.keys_per_query / base.keys_per_query - 1


def _failed_documents(results: Results) -> Gate:
    where = [f"{_arm_seed(row)}: {row.failed} of {row.wanted}" for row in results.answered if row.failed] + [
        f"{failure.arm or 'run'} · {failure.task or 'everything'}"
        for failure in results.failures
        if not _is_interrupt(failure)
    ]
    bad = "Something failed. A failed document counts as wrong; a task that could not be built is missing for all arms."
    return _gate("failed documents", where, bad, "Nothing failed.", "failed")


def _unfinished(results: Results) -> Gate:
    shown = {cell.arm for cell in results.cells}
    rows = [row for row in results.answered if row.answered < row.wanted]
    where = [
        f"{_arm_seed(row)}: {row.answered} of {row.wanted} answers" + ("" if row.arm in shown else ", left out")
        for row in rows
    ]
    interrupted = any(map(_is_interrupt, results.failures))
    bad = (
        f"{'Interrupted: n' if interrupted else 'N'}ot finished. A task is shown where an arm has answered at least "
        "half of it, compared with full on the documents that both answered; otherwise it is left out."
    )
    return _gate("arms unfinished", where, bad, "Every arm answered every document.")


def _seeds(results: Results) -> Gate:
    absent = [_arm_seed(row) for row in results.answered if not row.answered and _has_answers(results, row.arm)]
    alone = [
        f"{arm.name}: only seed {arm.seeds[0]}"
        for arm in results.arms
        if roles.is_seeded(arm.mode) and len(arm.seeds) == 1
    ]
    bad = "Stochastic arms without all their seeds, or with one seed: how much luck there is in it is not known."
    return _gate("seeds missing", [*absent, *alone], bad, "Every stochastic arm ran with several seeds.")


def _empty_answers(results: Results) -> Gate:
    generated, empty = ({arm.name: 0 for arm in results.arms} for _ in range(2))
    for row in results.answered:
        generated[row.arm] += row.generated
        empty[row.arm] += row.empty
    shares = {arm: empty[arm] / count for arm, count in generated.items() if count}
    usual = shares.get(FULL, 0.0)
    where = [
        f"{arm}: {share:.0%} empty" + (f" (full: {usual:.0%})" if arm != FULL else "")
        for arm, share in shares.items()
        if share >= EMPTY + (usual if arm != FULL else 0)
    ]
    bad = "Many answers are empty: the model stopped at once, which is no wrong answer but no answer."
    return _gate("empty answers", where, bad, "Generated answers are not empty more often than full attention's.")


def _cut_answers(results: Results) -> Gate:
    """Against the arm with the fewest, so that any two arms that differ are seen."""
    name, shares = "answers cut", cut_shares(results)
    unsaid = [row.arm for row in results.answered if row.ended < row.generated]
    fewest = min(shares, key=lambda arm: (shares[arm], arm != FULL), default=FULL)
    where = [
        f"{arm}: {share:.0%} cut ({fewest}: {shares[fewest]:.0%})"
        for arm, share in shares.items()
        if share - shares[fewest] >= CUT
    ]
    bad = (
        "The limit of new tokens cut the answers of some arms more often than those of others, so differences of "
        "accuracy here are differences of length, too: give the task more new tokens."
    )
    if unsaid and not where:
        where, bad = unsaid, "Not recorded by the version that ran them: whether the limit of new tokens cut answers."
    return _gate(name, where, bad, "The limit of new tokens cut no arm's answers more often than another's.")


def cut_shares(results: Results) -> dict[str, float]:
    """By arm: the share of its generated answers that the limit of new tokens cut, where that is recorded."""
    ended, cut = ({arm.name: 0 for arm in results.arms} for _ in range(2))
    for row in results.answered:
        ended[row.arm] += row.ended
        cut[row.arm] += row.cut
    return {arm: cut[arm] / count for arm, count in ended.items() if count}


def _truncation(results: Results) -> Gate:
    where = [
        f"{failure.arm or 'run'} · {failure.task or 'everything'}"
        for failure in results.failures
        if failure.error.startswith("TruncationError")
    ] + [f"{_arm_seed(row)}: {row.overlong} prompts" for row in results.answered if row.overlong]
    bad = "Prompts are longer than the length they stand for, or than the model's positions (those count as failed)."
    return _gate("truncation", where, bad, "No prompt was cut, none exceeds its length.")


def _sparse_phase(results: Results) -> Gate:
    dense = {row.arm for row in results.budgets if row.density < 1}  # others ran dense as they were told to
    where = [
        f"{run.arm} seed {run.seed}"
        for run in results.arm_runs
        if run.arm in dense and run.arm != FULL and sparse_calls(run.calls) == 0
    ]
    bad = "No sparse prefill happened in these arms: they ran dense and their scores are full attention's."
    return _gate("sparse phase", where, bad, "The patch counted sparse prefill in every sparse arm.", "failed")


def sparse_calls(calls: list[dict[str, int]] | None) -> int | None:
    """Sparse prefill calls summed over layers; None when the patch does not say."""
    counts = [layer["sparse_prefill"] for layer in calls or () if "sparse_prefill" in layer]
    return sum(counts) if counts else None


def _batch_invariance(results: Results) -> Gate:
    rows = [row for row in results.checks if row.check == "batch invariance"]
    broken = [f"{row.arm}: {row.text}" for row in rows if row.status == "failed"]
    name = "batch invariance"
    if broken:
        return Gate(name, "failed", "Documents score differently alone and in a batch.", broken)
    if results.settings.get("batch_size") == 1:
        return Gate(name, "passed", "Every document ran alone.")
    if not any(row.status == "passed" for row in rows):
        reasons = [f"{row.arm}: {row.text}" for row in rows]
        return Gate(name, "warning", "Not checked whether documents score alike alone and in a batch.", reasons)
    return Gate(name, "passed", "Documents scored alike alone and in a batch.")


def _one_set_of_documents(results: Results) -> Gate:
    documents = sum(len(task.hashes) for task in results.tasks)
    return Gate("same documents", "passed", f"Hashes checked: all arms answered the same {documents} documents.")


def _merged(results: Results) -> Gate:
    bad = "Merged from several runs that are not alike in everything (what decides a score is)."
    if results.merged is None:
        return Gate("merged runs", "passed", "One run.")
    good = f"Merged from {len(results.merged.runs)} runs that are alike."
    return _gate("merged runs", results.merged.differences, bad, good)


def _arm_seed(row: Answered) -> str:
    return f"{row.arm} seed {row.seed}"


def _has_answers(results: Results, arm: str) -> bool:
    return any(row.answered for row in results.answered if row.arm == arm)


def _is_interrupt(failure: Failure) -> bool:
    return "interrupted" in failure.error


GATES = (
    _sparse_phase,
    _batch_invariance,
    _failed_documents,
    _unfinished,
    _seeds,
    _above_full,
    _full_floor,
    _density,
    _budgets,
    _empty_answers,
    _cut_answers,
    _truncation,
    _merged,
    _one_set_of_documents,
)
