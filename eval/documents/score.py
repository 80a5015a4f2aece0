"""The number that counts for a document, of the metrics that a task gives."""

from __future__ import annotations

METRICS = ("acc", "exact_match", "score", "acc_norm", "pass@1", "f1", "em")  # the usual ones


def score_of(metrics: dict[str, float], preferred: str | None, better: dict[str, bool]) -> tuple[str, float]:
    """The one number that counts for a document: the preferred metric, else the usual ones, else the first.

    Args:
        better: False for metrics where less is better; they are passed over.

    Raises:
        ValueError: there is none, or it is no share of a right answer.
    """
    for name in (preferred, *METRICS, *metrics):
        if name in metrics and better.get(name) is not False:
            score = float(metrics[name])
            if not 0 <= score <= 1:  # NaN too
                raise ValueError(f"{name} is {score}: only shares of right answers (0 to 1) are compared here")
            return name, score
    raise ValueError(
        "the task gives no number per document (a corpus metric like perplexity?), so it cannot be compared "
        "document by document"
    )
