"""The documentation site builds without a warning, all of its links lead somewhere, and it can be read on a phone."""

import functools
import http.server
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest
import tomli
from lxml import html

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LOOKED_AT = ("", "choosing/", "concepts/", "api/sa_patch/", "real-model/")
# How far the text of the page stands out from what lies behind it, as a ratio; 4.5 is what readers need.
CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const light = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((value) => {
      const x = value / 255; return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const text = light(getComputedStyle(document.querySelector("article p")).color);
  const behind = light(getComputedStyle(document.body).backgroundColor);
  return { behind, ratio: (Math.max(text, behind) + 0.05) / (Math.min(text, behind) + 0.05) };
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built from a folder of its own, so that no cache and no other process takes part."""
    pytest.importorskip("zensical")  # needs Python 3.11
    folder = tmp_path_factory.mktemp("site")
    for name in ("docs", "sa_patch", "benchmarks", "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    shutil.copy(ROOT / "zensical.toml", folder)
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stdout + done.stderr and "griffe" not in done.stdout + done.stderr
    return folder / "build" / "site"


def documents(navigation):
    for item in navigation:
        for target in item.values():
            yield from [target] if isinstance(target, str) else documents(target)


def test_every_page_is_in_the_navigation_and_built(site):
    listed = list(documents(tomli.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]))
    assert sorted(listed) == sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md"))
    for name in listed:
        place = site if name == "index.md" else site / name.removesuffix(".md")
        text = html.parse(str(place / "index.html")).getroot().text_content()
        assert "--8<--" not in text and ":::" not in text, f"{name}: something was not included"


def test_links_lead_somewhere(site):
    pages = {path: html.parse(str(path)).getroot() for path in site.rglob("*.html") if "example" not in path.parts}
    names = {path: {item.get("id") for item in root.iter() if item.get("id")} for path, root in pages.items()}
    for path, root in pages.items():
        for item in root.iter("a", "img", "link", "script"):
            address = item.get("href") or item.get("src") or ""
            if not address or urlparse(address).scheme or path.name == "404.html":
                continue
            file, fragment = urldefrag(address)
            target = (path.parent / unquote(file)).resolve() if file else path
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{path}: {address}"
            assert not fragment or target not in names or unquote(fragment) in names[target], f"{path}: {address}"


def test_the_reference_holds_everything_public(site):
    import sa_patch

    shown = html.parse(str(site / "api" / "sa_patch" / "index.html")).getroot()
    named = {item.get("id", "").rsplit(".", 1)[-1] for item in shown.iter("h2")}
    assert set(sa_patch.__all__) - {"VARIANTS", "Variant", "analysis"} <= named  # those have pages of their own


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")
def test_a_browser_shows_it_on_a_desk_and_on_a_phone_by_day_and_by_night(site):
    from playwright.sync_api import sync_playwright

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base, trouble = f"http://127.0.0.1:{server.server_port}/", []
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            for width, scheme in ((1280, "light"), (390, "light"), (390, "dark")):
                page = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
                page.on("pageerror", lambda error: trouble.append(str(error)))
                page.on("request", lambda one: trouble.append(one.url) if not one.url.startswith(base) else None)
                page.on("response", lambda one: trouble.append(one.url) if one.status >= 400 else None)
                for address in LOOKED_AT:
                    page.goto(base + address)
                    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (address, width)
                    seen = page.evaluate(CONTRAST)
                    assert (seen["behind"] > 0.5) == (scheme == "light") and seen["ratio"] >= 4.5, (address, scheme)
            browser.close()
    finally:
        server.shutdown()
        server.server_close()
    assert not trouble
