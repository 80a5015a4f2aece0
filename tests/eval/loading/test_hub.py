"""Laws of hub models that cannot be had: the true reason, in seconds; and of cached ones, which need no hub.

A local server answers as the hub does, so huggingface_hub's own reading of its answers is what is tested.
"""

import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from eval_helpers import save_tiny_model
from hostile_helpers import loaded, refuses

from sa_eval.loading import hub
from sa_eval.settings.config import SettingsError

COMMIT = "0" * 40
ANSWERS = {  # status and X-Error-Code, as the hub sends them
    "gone": (401, "RepoNotFound"),
    "gated": (403, "GatedRepo"),
    "revision": (404, "RevisionNotFound"),
    "file": (404, "EntryNotFound"),
    "trouble": (503, None),
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def point_to(monkeypatch, port):
    endpoint = f"http://127.0.0.1:{port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def answering(cache, monkeypatch):
    """A hub that answers everything in one way; returns the requests it got."""
    servers, asked = [], []

    def start(kind):
        status, code = ANSWERS[kind]

        class Hub(BaseHTTPRequestHandler):
            def do_HEAD(self):
                asked.append(self.path)
                self.send_response(status)
                if code:
                    self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args):
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Hub))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        point_to(monkeypatch, servers[-1].server_port)
        return asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def silent(cache, monkeypatch):
    """Nobody listens where the hub should be."""
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.server_close()
    point_to(monkeypatch, server.server_port)


@pytest.fixture
def cached(cache):
    """A model in the cache, as huggingface_hub lays it out."""
    folder = cache / "models--someone--tiny"
    save_tiny_model(folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)


@pytest.mark.parametrize(
    "kind, reason",
    [
        ("gone", r"shows you no model someone/tiny: there is none, or it is private\. The hub does not say"),
        ("gated", r"someone/tiny is gated: ask for access on http.*/someone/tiny, then log in with `hf auth login`"),
        ("revision", "someone/tiny has no revision 'v2'"),
        ("file", r"someone/tiny has no config\.json at revision 'v2'"),
        ("trouble", r"not in the cache .* at revision 'v2', and http.* cannot be reached \(.*503"),
    ],
)
def test_the_hubs_refusal_is_told_in_its_own_words_after_one_question(answering, kind, reason):
    asked = answering(kind)
    with pytest.raises(SettingsError, match=reason):
        loaded("someone/tiny", revision="v2")
    assert asked == ["/someone/tiny/resolve/v2/config.json"]


def test_without_a_network_the_cache_is_named_at_once(silent, cache, capsys):
    start = time.monotonic()
    line = refuses("someone/tiny", capsys)
    assert time.monotonic() - start < 10 * hub.TIMEOUT_S  # minutes, where transformers is left to retry
    assert f"someone/tiny is not in the cache ({cache})" in line and "cannot be reached" in line
    assert "config" not in line.replace(str(cache), "")


def test_offline_by_choice_is_told_so(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SettingsError, match=r"not in the cache .*HF_HUB_OFFLINE is set: unset it"):
        loaded("someone/tiny")


def test_a_name_that_no_repository_can_have_is_told(cache):
    with pytest.raises(SettingsError, match="cannot be a hub id"):
        loaded("someone/ti..ny")


def test_a_cached_model_loads_without_a_network_and_without_retries(silent, cached, monkeypatch):
    def no_retry(seconds):
        raise AssertionError(f"waited {seconds} s to ask the hub again")

    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", no_retry)
    found = loaded("someone/tiny")
    assert found.identity.to_dict()["hub_id"] == "someone/tiny" and found.identity.revision == COMMIT
