"""Laws of report.html in a real browser: it renders, sorts, unfolds, filters and prints, and asks for nothing."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from planted import PLANTED, planted_run, summarised

from sa_eval.fidelity import loss_page
from sa_eval.fidelity.types import Fidelity
from sa_eval.page import report
from sa_eval.records.directory import RunDirectory
from sa_eval.records.result_folder import read_result
from sa_eval.records.types import Failure
from sa_eval.speed import beside_full, time_page
from sa_eval.speed.types import KernelTime

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
RESULTS = Path(__file__).parents[1]
LONG_NAME = "random-keys-w64-sinks4-tail8"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
HOSTILE = (
    "</script><script>document.title='hacked'</script><img src=https://example.org/x onerror=document.title='hacked'> "
    + "an_unbroken_word_" * 20
)
# Every element that holds text of its own: its contrast with what lies behind it.
CONTRASTS = """() => {
  const channel = (value) => { const x = value / 255; return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; };
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const [r, g, b, a] = rgba(getComputedStyle(e).backgroundColor);
      layers.unshift([[r, g, b], a / 255]);
    }
    return layers.reduce((under, [over, a]) => under.map((v, i) => v * (1 - a) + over[i] * a), [255, 255, 255]);
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest("script, svg, option") || !element.checkVisibility()) continue;
    const [one, two] = [light(rgba(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => b - a);
    found.push([(one + 0.05) / (two + 0.05), element.tagName + "." + element.className + " " + element.textContent]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = planted_run(tmp_path_factory.mktemp("browser") / "run", documents=12, said=HOSTILE)
    directory.append(Failure("sa-w64", 0, None, HOSTILE))
    results = summarised(directory)
    results["gates"].append({"gate": "a gate", "status": "warning", "text": HOSTILE, "where": list("abcdefgh")})
    results["cells"][0]["accuracy"] += 0.0004  # no two alike in the first column to be sorted
    directory.write_json("results.json", results)
    report.write(directory)
    return directory


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, directory):
    """Opens the report as asked; afterwards nothing may have been logged, requested or asked by it."""
    contexts, trouble = [], []

    def open_page(viewport=DESKTOP, path=directory.path, **settings):
        contexts.append(browser.new_context(viewport=viewport, **settings))
        page = contexts[-1].new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: trouble.append(dialog.message))
        address = (path / "report.html").as_uri()
        page.on("request", lambda request: trouble.append(request.url) if request.url != address else None)
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not trouble


def unfold(page):
    page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")


def test_it_renders_whatever_the_model_said_and_asks_for_nothing(visit):
    page = visit()
    unfold(page)
    assert page.title() == page.locator("h1").inner_text() == "What does sparse attention cost tiny <b>?"
    assert page.locator("svg.chart").count() == page.locator("svg.chart >> visible=true").count() > 15
    box = page.locator("svg.chart").first.bounding_box()
    assert box["width"] > 200 and box["height"] > 150
    assert page.get_by_text("document.title='hacked'").count() > 10


def first_by_arm(page):
    return page.locator("table.sortable", has=page.locator("caption", has_text="Accuracy by arm")).first


def column(page, number):
    rows = first_by_arm(page).locator("tbody tr")
    return [float(rows.nth(i).locator("td").nth(number).get_attribute("data-v") or "nan") for i in range(rows.count())]


def test_tables_sort_by_mouse_and_by_keyboard(visit):
    page = visit()
    head = first_by_arm(page).locator("th", has_text="overall")
    before = column(page, 0)
    head.locator("button").click()
    assert column(page, 0) == sorted(before) and head.get_attribute("aria-sort") == "ascending"
    head.locator("button").press("Enter")
    assert column(page, 0) == sorted(before, reverse=True) and head.get_attribute("aria-sort") == "descending"
    other = first_by_arm(page).locator("th", has_text="vs full")
    for _ in range(2):
        other.locator("button").click()
        assert [str(value) for value in column(page, 1)].index("nan") == 3  # what has no value stands last
    assert head.get_attribute("aria-sort") is None
    names = first_by_arm(page).locator("th", has_text="arm")
    names.locator("button").click()
    rows = first_by_arm(page).locator("tbody th").all_inner_texts()
    assert [row.split("\n")[0] for row in rows] == ["full", "moba-w64", "sa-w64", "swa-w64"]


def test_documents_unfold_with_prompt_answers_and_what_was_expected(visit):
    page = visit()
    card = page.locator("details.document").first
    assert not card.locator(".open").is_visible()
    card.locator("summary").press("Enter")
    text = card.inner_text()
    assert "Prompt begins" in text and "Prompt ends" in text and "a right answer" in text
    assert "full seed 0: " in text and "sa-w64 seed 1: " in text


@pytest.mark.parametrize("outcome, sign", [("won", 1), ("lost", -1)])
def test_the_filter_shows_the_documents_it_says(visit, directory, outcome, sign):
    page = visit()
    scores = {}
    for record in directory.records():
        if record.task == "majority_topic@512":
            scores.setdefault((record.arm, record.index), []).append(record.score)
    means = {place: sum(found) / len(found) for place, found in scores.items()}
    wanted = {i for i in range(12) if sign * (means["sa-w64", i] - means["moba-w64", i]) > 0}
    for name, value in {"arm": "sa-w64", "base": "moba-w64", "outcome": outcome, "task": "majority_topic@512"}.items():
        page.locator(f"form.filter [name={name}]").select_option(value)
    shown = page.locator("details.document >> visible=true")
    titles = [shown.nth(i).locator("summary").inner_text() for i in range(shown.count())]
    assert {int(re.search(r"document (\d+)", title).group(1)) for title in titles} == wanted
    assert page.locator("#count").inner_text().startswith(f"{len(wanted)} of ")
    if wanted:
        shown.first.locator("summary").click()
        rows = shown.first.locator("tbody tr >> visible=true")
        assert [rows.nth(i).get_attribute("data-arm") for i in range(rows.count())] == ["sa-w64", "moba-w64"]


def test_a_phone_never_scrolls_sideways(visit):
    page = visit(viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    region = page.locator(".wide", has=page.locator("caption", has_text="Accuracy by task")).first
    assert region.evaluate("box => box.scrollWidth > box.clientWidth && box.tabIndex === 0")


def test_a_phone_shows_the_essential_columns_without_scrolling_and_says_so(visit):
    page = visit(viewport=PHONE)
    for caption, heads in (("What the answer rests on", ["pair", "points"]), ("Accuracy by arm", None)):
        region = page.locator(".wide", has=page.locator("caption", has_text=caption)).first
        assert region.evaluate("box => box.scrollWidth <= box.clientWidth")
        shown = region.locator("thead th >> visible=true").all_inner_texts()
        assert shown == (heads or ["arm", "overall", "vs full"])
        assert region.locator(".narrowed").is_visible()
    wide = visit()
    assert not wide.locator(".narrowed").first.is_visible()
    assert wide.locator("th.extra >> visible=true").count() > 10


@pytest.fixture(scope="module")
def fidelity(tmp_path_factory):
    """A result with intervals and several seeds, of an arm with a long name."""
    result = read_result(str(RESULTS / "fidelity" / "version1"), "fidelity", Fidelity)
    full, other = result.cells
    result.arms = [result.arms[0], replace(result.arms[1], name=LONG_NAME)]
    result.cells = [full, replace(other, arm=LONG_NAME, overall=replace(other.overall, perplexity=12_345.6))]
    directory = RunDirectory(tmp_path_factory.mktemp("fidelity"))
    loss_page.write(directory, result)
    return directory.path


@pytest.fixture(scope="module")
def speed(tmp_path_factory):
    """A result in which every kernel was timed."""
    result = beside_full.read(str(RESULTS / "speed" / "version1"))
    result.settings["kernels"] = "all"
    kernels = [KernelTime("triton", 1234.5, [1234.5] * 4), KernelTime("reference", 91234.5, [91234.5] * 4)]
    result.rows = [replace(row, kernels=["triton"], by_kernel=kernels) for row in result.rows]
    folder = tmp_path_factory.mktemp("speed")
    time_page.write(RunDirectory(folder), result)
    return folder


@pytest.mark.parametrize("kind, caption", [("fidelity", "scored predictions"), ("speed", "Time to the first token")])
def test_a_desktop_shows_every_column_of_the_first_table_without_scrolling(visit, request, kind, caption):
    page = visit(path=request.getfixturevalue(kind))
    region = page.locator(".wide", has=page.locator("caption", has_text=caption)).first
    assert region.evaluate("box => box.scrollWidth <= box.clientWidth")
    heads = region.locator("thead th")
    assert heads.count() == heads.locator("visible=true").count() > 8
    assert kind == "speed" or LONG_NAME in region.locator("tbody th").all_inner_texts()


def test_a_desktop_shows_the_essential_columns_however_long_a_name_is(visit, fidelity):
    page = visit(path=fidelity)
    region = page.locator(".wide", has=page.locator("caption", has_text="scored predictions")).first
    region.locator("tbody th").first.evaluate("cell => { cell.textContent = 'a-plan-with-a-name-'.repeat(3) }")
    right = region.evaluate("box => box.getBoundingClientRect().right")
    for head in region.locator("thead th:not(.extra)").all():
        box = head.bounding_box()
        assert box["x"] + box["width"] <= right


def test_the_first_screen_holds_the_answer_a_chart_and_the_glossary(visit):
    page = visit()
    for part in (".answer", "svg.chart", ".glossary"):
        box = page.locator(part).first.bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= DESKTOP["height"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_themes(visit, scheme):
    page = visit(color_scheme=scheme)
    unfold(page)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    title = page.locator("svg.chart text").last.evaluate("text => getComputedStyle(text).fill")
    assert (ground, title) == {
        "light": ("rgb(251, 251, 250)", "rgb(28, 29, 31)"),
        "dark": ("rgb(21, 23, 26)", "rgb(232, 233, 234)"),
    }[scheme]
    found = page.evaluate(CONTRASTS)
    assert len(found) > 500
    assert [entry for entry in found if entry[0] < 4.5] == []


def test_paper_shows_every_section_and_what_was_folded(visit):
    page = visit(color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 29, 31)"
    for title in page.locator("h2").all():
        assert title.is_visible()
    tables = page.locator("table.sortable")
    assert tables.count() == page.locator("table.sortable >> visible=true").count() > 8
    heights = page.locator("details.fold table.sortable").evaluate_all("all => all.map((table) => table.offsetHeight)")
    assert heights and min(heights) > 20
    assert not page.locator("form.filter").is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_it_is_complete_without_script(visit):
    page = visit(java_script_enabled=False)
    assert page.locator("table.sortable").count() > 8 and page.locator("thead button").count() == 0
    assert not page.locator("form.filter").is_visible()
    page.locator("details.document summary").first.click()
    assert page.locator("details.document").first.locator("pre").first.is_visible()


def test_everything_is_reached_by_the_tab_key(visit):
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left >= 0")
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.tagName"))
    assert {"A", "BUTTON", "SUMMARY", "DIV"} <= reached
    assert len(PLANTED) == page.locator("form.filter [name=base] option").count()
