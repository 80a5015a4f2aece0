"""Whether a hub model can be had: asked once, answered within seconds, each reason in its own words.

transformers retries a hub that does not answer for minutes, and goes on without the files it could not get.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub import errors as hub

from sa_eval.messages import one_line, shown
from sa_eval.settings.config import SettingsError

CONFIG = "config.json"
TIMEOUT_S = 5.0


@contextlib.contextmanager
def reached(repository: str, revision: str | None) -> Iterator[dict[str, str | bool]]:
    """What `from_pretrained` needs for this model; where the hub does not answer, inside only the cache is read.

    Raises:
        SettingsError: no such repository or revision, gated, no transformers model, or neither cached nor in reach.
    """
    wanted = revision or "main"
    if _answers(repository, wanted):
        yield {"revision": wanted}
        return
    with mock.patch.object(constants, "HF_HUB_OFFLINE", True):  # transformers does not pass local_files_only on always
        yield {"revision": wanted, "local_files_only": True}


def _answers(repository: str, wanted: str) -> bool:
    """Whether the hub has the model; False where it does not answer and the model is in the cache."""
    page, cached = f"{constants.ENDPOINT}/{repository}", False
    try:
        cached = isinstance(try_to_load_from_cache(repository, CONFIG, revision=wanted), str)
        get_hf_file_metadata(hf_hub_url(repository, CONFIG, revision=wanted), timeout=TIMEOUT_S)
    except hub.HFValidationError as error:
        raise SettingsError(f"model {shown(repository)} cannot be a hub id: {one_line(error)}") from error
    except hub.GatedRepoError as error:  # also a RepositoryNotFoundError
        raise SettingsError(
            f"the model {repository} is gated: ask for access on {page}, then log in with `hf auth login`"
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise SettingsError(
            f"the hub shows you no model {repository}: there is none, or it is private. The hub does not say which "
            f"names are close: check the spelling on {constants.ENDPOINT}/models, or log in with `hf auth login`"
        ) from error
    except hub.RevisionNotFoundError as error:
        raise SettingsError(
            f"the model {repository} has no revision {shown(wanted)}: its branches, tags and commits are on {page}"
        ) from error
    except hub.EntryNotFoundError as error:
        raise SettingsError(
            f"the hub's {repository} has no {CONFIG} at revision {shown(wanted)}, so transformers cannot load it; of a "
            "repository of GGUF files, download one and give its path"
        ) from error
    except Exception as error:  # no network, a proxy, a hub in trouble: the library below huggingface_hub varies
        if not cached:
            raise SettingsError(_out_of_reach(repository, wanted, error)) from error
        return False
    return True


def _out_of_reach(repository: str, revision: str, error: Exception) -> str:
    if isinstance(error, hub.OfflineModeIsEnabled):
        reason, way_out = "HF_HUB_OFFLINE is set", "unset it"
    else:
        reason, way_out = f"{constants.ENDPOINT} cannot be reached ({one_line(error)})", "connect to it"
    at = "" if revision == "main" else f" at revision {shown(revision)}"
    return (
        f"the model {repository} is not in the cache ({constants.HF_HUB_CACHE}){at}, and {reason}: {way_out}, or give "
        "the folder of a saved model"
    )
