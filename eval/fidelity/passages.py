"""Which passages `sa-eval fidelity` reads, and what a reader has to know about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sa_eval.fidelity import texts
from sa_eval.fidelity.types import Request
from sa_eval.loading import models, sources
from sa_eval.messages import shown
from sa_eval.settings.config import Settings, SettingsError

DOCUMENTS = 2  # of each task of the bundled texts
PASSAGES = 8  # of each text of the user
ALL: Final = "all"
GUESSING = "The bundled models know the bundled texts only: on others they guess, and their perplexity says nothing."
ONE_TEXT = "All passages are of one text: intervals speak about that text, not about others."
ANSWERS_ONLY = (
    "Bundled texts: the answers in them are scored. KL all takes every token, also those that the bundled models were "
    "never trained to predict, and so does KL by position."
)


def check_language(settings: Settings, given: Sequence[texts.Text]) -> None:
    """The bundled texts are in a language that only the bundled models know."""
    if not given and settings.model not in sources.BUNDLED:
        raise SettingsError(
            f"model {shown(settings.model)} needs texts of yours: give UTF-8 files with --text FILE ...; the bundled "
            "texts are in a synthetic language that only the bundled models know, and say nothing about this model"
        )


def check_lengths(lengths: Sequence[int], limit: int | None) -> None:
    if limit is not None and max(lengths) > limit:
        raise SettingsError(
            f"length {max(lengths)} is longer than the model's {limit} positions: ask for shorter lengths"
        )
    if min(lengths) < texts.LEAST_TOKENS:
        raise SettingsError(f"length {min(lengths)} is too short: passages have at least {texts.LEAST_TOKENS} tokens")


def cut(
    settings: Settings, request: Request, given: Sequence[texts.Text], loaded: models.Loaded
) -> tuple[list[texts.Cut], list[str]]:
    """The passages of every length, and what a reader must know about them."""
    if given:
        most = None if request.passages == ALL else request.passages or PASSAGES
        cuts = [texts.cut(given, loaded.tokenizer, length, most) for length in settings.lengths]
        guessing = [GUESSING] if loaded.source.name in sources.BUNDLED else []
        return cuts, [*guessing, *([ONE_TEXT] if len(given) == 1 else [])]
    if request.passages == ALL:
        raise SettingsError("passages `all` has no meaning for the bundled texts, which are generated: give a number")
    end, count = [loaded.tokenizer.eos_token_id], request.passages or DOCUMENTS
    found = [texts.bundled(loaded.tokenizer, length, count, settings.doc_seed, end) for length in settings.lengths]
    cuts = [cut for cut, _ in found]
    left_out = [f"{cut.length} tokens are too few for {', '.join(misfits)}" for cut, misfits in found if misfits]
    return cuts, [*left_out, ANSWERS_ONLY]


def used(cut: texts.Cut) -> str:
    """How many tokens are used and how many are left, in one line."""
    count, left = sum(row.tokens_used for row in cut.texts), sum(row.tokens_left for row in cut.texts)
    rest = f"; {left:,} tokens of the texts are left out (--passages, --lengths)" if left else ""
    return f"length {cut.length}: {len(cut.passages)} passages of {len(cut.texts)} texts, {count:,} tokens{rest}"
