"""What has to be as it was when a result of one file is continued."""

from __future__ import annotations

from sa_eval.records.opening import THEN_AND_NOW, differences
from sa_eval.records.result_folder import Result
from sa_eval.records.types import Json
from sa_eval.settings.values import SettingsError

COMPUTING = ("torch", "transformers")  # versions that can change a number
MOST = 5


def computing(result: Result) -> dict[str, Json]:
    """What has to be as it was when a result is continued."""
    versions = {name: result.versions.get(name) for name in COMPUTING}
    return {"model": result.model, "versions": versions, "code": result.code}


def check_continued(path: str, then: dict[str, Json], now: dict[str, Json]) -> None:
    """Refuse to continue a result whose model, code, versions or texts are not the recorded ones, and name them.

    Raises:
        SettingsError: something differs, or an older version made the file.
    """
    found = differences(then, now, words=THEN_AND_NOW)
    if then.get("code") is None:
        found = ["the file does not say which code made it: an older version did"]
    if not found:
        return
    more = f" (and {len(found) - MOST} more)" if len(found) > MOST else ""
    raise SettingsError(
        f"{path} cannot be continued: {'; '.join(found[:MOST])}{more}. What it holds stays as it is; measure anew into "
        "another folder (--out)"
    )
