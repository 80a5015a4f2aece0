"""Laws of report.html and figures/: numbers are the results, nothing from outside becomes markup."""

import csv
import io
import itertools
import json
import re
from dataclasses import replace
from importlib import resources
from xml.etree import ElementTree

import lxml.html
import numpy as np
import pytest
from planted import FAMILIES, PLANTED, planted_run, summarised

from sa_eval.page import document_list, report
from sa_eval.records.types import Failure, Merged
from sa_eval.results import summary

HOSTILE = (
    "</script><script>hacked=1</script><img src=x onerror=hacked=1>\"'><svg onload=hacked=1>"
    "</pre></td></table>{{7*7}}{% raw %}<!--]]>&lt;b&gt; $\\frac{1}{0}$ \x00\x1b[31m\u202etxt\ud800 =1+1"
)


def read(directory):
    return (directory.path / "report.html").read_text(encoding="utf-8")


def rendered(directory):
    """Results and page without the figures' files, which take as long again."""
    results, records = summarised(directory), list(directory.records())
    found = summary.read(directory)
    documents = document_list.differing(found, records, directory.prompts())
    return results, report.render(found, records, documents)


def tables(page):
    """Caption -> rows of cells' texts, without the small print, and rows of small print."""
    found = {}
    for table in lxml.html.fromstring(page).iter("table"):
        rows = [row.xpath("th|td") for row in table.xpath("tbody/tr")]
        texts = [["".join(cell.xpath("text()|bdi/text()")).strip() for cell in row] for row in rows]
        small = [["".join(cell.xpath("small/text()")) for cell in row] for row in rows]
        found[table.xpath("string(caption/text()[1])")] = (table.xpath("thead/tr/th/text()"), texts, small)
    return found


def percent(value, form=".1f"):
    return f"{100 * value:{form}}".replace("-", "\u2212")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = planted_run(tmp_path_factory.mktemp("report") / "run")
    results = summarised(directory)
    report.write(directory)
    return directory, results, read(directory)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Everything that comes from outside is hostile: prompts, answers, errors, names."""
    directory = planted_run(tmp_path_factory.mktemp("hostile") / "run", documents=4, lengths="512", said=HOSTILE)
    manifest = directory.manifest()
    manifest.model["name"] = manifest.hardware["cpu"] = HOSTILE
    directory.write_manifest(manifest)
    directory.append(Failure("sa-w64", 0, HOSTILE, HOSTILE))
    results = summarised(directory)
    for status in ("failed", "warning"):
        results["gates"].append({"gate": HOSTILE, "status": status, "text": HOSTILE, "where": [HOSTILE]})
    directory.write_json("results.json", results)
    report.write(directory)
    return directory


@pytest.mark.parametrize("length", [512, 1024, "all"])
def test_every_number_of_the_accuracy_tables_is_the_results(run, length):
    _, results, page = run
    name = "all lengths" if length == "all" else f"{length:,} tokens"
    heads, rows, small = tables(page)[f"Accuracy by arm, {name}: %, 95 % intervals"]
    cells = {(c["arm"], c["name"]): c for c in results["cells"] if c["length"] == length}
    assert [row[0] for row in rows] == [arm["name"] for arm in results["arms"]]
    for row, fine in zip(rows, small, strict=True):
        shown, about = dict(zip(heads, row, strict=True)), dict(zip(heads, fine, strict=True))
        for column in ("overall", "retrieval", "aggregation", "cloze"):
            cell = cells[row[0], column]
            assert shown[column] == percent(cell["accuracy"])
            assert about[column] == f"{percent(cell['low'])}\u2013{percent(cell['high'])}"
        cell = cells[row[0], "overall"]
        if row[0] != "full":
            assert shown["vs full"] == percent(cell["difference"], "+.1f")
            ends = (percent(cell["corrected_low"], "+.1f"), percent(cell["corrected_high"], "+.1f"))
            assert about["vs full"] == " to ".join(ends)
            assert shown["won, lost"] == f"{cell['won']}, {cell['lost']}"
            assert shown["detectable"] == percent(cell["detectable"]) and about["p, corrected"] == cell["test"]
            value = cell["p_adjusted"]
            assert shown["p, corrected"] == ("< 0.001" if value < 0.001 else f"{value:.3f}")


def test_significance_is_marked_in_words_and_only_where_it_is(run):
    _, results, page = run
    cells = {c["arm"]: c for c in results["cells"] if c["length"] == "all" and c["scope"] == "overall"}
    body = lxml.html.fromstring(page)
    (table,) = [t for t in body.iter("table") if t.xpath("string(caption)").startswith("Accuracy by arm, all lengths")]
    for row in table.xpath("tbody/tr"):
        cell, marks = cells[row.xpath("string(th)").removesuffix("untrained")], row.xpath(".//span/@aria-label")
        worse = cell["significant"] and cell["difference"] < 0
        assert marks == (["significantly worse"] if worse else [])
    assert sum(cell["significant"] for cell in cells.values()) == 3


def test_task_tables_budgets_and_speed_are_the_results(run):
    _, results, page = run
    found = tables(page)
    _, rows, _ = found["Accuracy by task, 512 tokens: %, 95 % intervals"]
    tasks = {(c["arm"], c["name"]): c["accuracy"] for c in results["cells"] if c["length"] == 512}
    assert rows == [[arm["name"], *[percent(tasks[arm["name"], n]) for n in FAMILIES]] for arm in results["arms"]]
    _, rows, _ = found["Budgets asked and measured, prefill"]
    assert [row[4] for row in rows] == [f"{row['keys_per_query']:,.2f}" for row in results["budgets"]]
    _, rows, _ = found["Latency, decode speed and memory beside accuracy"]
    for row, speed in zip(rows, results["speed"], strict=True):
        assert row[3:5] == [f"{speed['prefill_ms']:.1f}", f"{speed['speedup']:.2f}"]
        assert row[5:] == ["not measured", "not measured"]


def test_seeds_stand_beside_documents(run):
    _, results, page = run
    _, rows, _ = tables(page)["Spread between seeds beside the error of sampling documents"]
    cells = [c for c in results["cells"] if c["arm"] == "sa-w64" and c["scope"] != "task"]
    assert [row[5:7] for row in rows] == [[percent(c["sampling_sd"]), percent(c["seed_sd"])] for c in cells]


def test_the_answer_comes_first_then_the_gates_then_the_numbers(run):
    _, results, page = run
    body = lxml.html.fromstring(page)
    assert body.xpath("string(//header//p[@class='answer'])") == results["answer"][0]
    titles = [heading.text for heading in body.xpath("//h2")]
    assert titles[:3] == ["Can these numbers be trusted?", "Accuracy against measured budget", "Depth of the evidence"]
    order = [page.index(mark) for mark in ('class="answer"', 'class="chart"', "<table", 'id="gates"')]
    assert order == sorted(order)
    trusted = body.xpath("string(//header//a[@href='#gates']/..)")
    assert f"{len(results['gates'])} passed" in trusted or "warning" in trusted


def test_the_first_screen_has_a_chart_a_glossary_and_the_evidence(run):
    """Nothing of it is folded, and the chart and the table hold the numbers that the answer names."""
    _, results, page = run
    header = lxml.html.fromstring(page).xpath("//header")[0]
    assert not header.xpath(".//details[.//table or .//*[@class='chart']]")
    assert len(header.xpath(".//dl[@class='glossary']/div")) == 3
    overall = {c["arm"]: c for c in results["cells"] if c["length"] == "all" and c["scope"] == "overall"}
    (words,) = header.xpath(".//*[@class='chart']/@aria-label")
    for arm in ("swa-w64", "sa-w64", "moba-w64"):
        assert f"{arm} {percent(overall[arm]['accuracy'])} % (" in words
    caption = "What the answer rests on: points, paired by document, corrected intervals"
    _, rows, small = tables(page)[caption]
    assert [row[0] for row in rows] == [f"sa-w64 minus {base}" for base in ("full", "swa-w64", "moba-w64")]
    rivals = {
        row["base"]: row for row in results["comparisons"] if row["arm"] == "sa-w64" and row["scope"] == "overall"
    }
    for row, fine in zip(rows, small, strict=True):
        base = row[0].split(" minus ")[1]
        wanted = overall["sa-w64"] if base == "full" else rivals[base]
        assert row[1:3] == [percent(wanted["difference"], "+.1f"), f"{wanted['won']}, {wanted['lost']}"]
        ends = (percent(wanted["corrected_low"], "+.1f"), percent(wanted["corrected_high"], "+.1f"))
        assert fine[1:3] == [" to ".join(ends), f"of {wanted['paired']}"]
        assert percent(abs(wanted["difference"])) in results["answer"][0]


def test_with_several_windows_the_charts_are_against_the_budget(tmp_path):
    directory = planted_run(tmp_path / "run", documents=8, lengths="512", window="32,64")
    words = lxml.html.fromstring(rendered(directory)[1]).xpath("//*[@class='chart']/@aria-label")
    assert words[0].startswith("512 tokens: accuracy against keys per query. ")
    assert all("at 60 keys per query" in text for text in words[:4])


def test_of_too_few_documents_the_page_claims_nothing(tmp_path):
    _, page = rendered(planted_run(tmp_path / "run", documents=1, lengths="512"))
    body = lxml.html.fromstring(page)
    assert body.xpath("string(//p[@class='answer'])").startswith("4 documents: too few to say anything; ")
    assert not body.xpath("//*[@class='better' or @class='worse']")
    _, rows, small = tables(page)["Accuracy by arm, 512 tokens: %, 95 % intervals"]
    assert {fine[2] for fine in small[1:]} == {"too few documents"}
    assert {row[4] for row in rows[1:]} == {"too few documents"}


def test_gates_that_did_not_pass_are_open_and_the_others_folded(hostile):
    body = lxml.html.fromstring(read(hostile))
    results = json.loads((hostile.path / "results.json").read_text())
    for status in ("failed", "warning"):
        names = body.xpath(f"//div[@class='box {status}']//li/b/text()")
        assert len(names) == sum(gate["status"] == status for gate in results["gates"]) > 0
    (folded,) = body.xpath("//section[@aria-labelledby='gates']/details")
    passed = [gate["gate"] for gate in results["gates"] if gate["status"] == "passed"]
    assert folded.xpath(".//li/b/text()") == passed and "open" not in folded.attrib


def test_nothing_from_outside_becomes_markup(hostile):
    page = read(hostile)
    body = lxml.html.document_fromstring(page)
    script = resources.files("sa_eval.page").joinpath("report.js").read_text(encoding="utf-8")
    assert [element.text for element in body.iter("script")] == [script]
    assert not list(body.iter("img", "iframe", "object", "embed", "link", "base"))
    assert not [name for element in body.iter() for name in element.attrib if name.startswith("on")]
    links = [element.attrib["href"] for element in body.iter() if "href" in element.attrib]
    assert all(link.startswith("#") or link == "figures/documents.csv" for link in links)
    text = body.text_content()
    assert "<script>hacked=1</script>" in text and "{{7*7}}" in text and "&lt;b&gt;" in text
    assert "\\u0000" in text and "\\u202e" in text
    assert not re.search("[\x00\x1b\u202e]", page)


def test_hostile_text_is_in_every_place_that_shows_it(hostile):
    """The test above would pass if the page left these out."""
    body = lxml.html.fromstring(read(hostile))
    places = [
        "//h1",
        "//title",
        "//dl[@class='facts']",
        "//div[@class='box failed']",
        "//pre",
        "//td[contains(@class,'said')]",
    ]
    places += ["//section[@aria-labelledby='failures']", "//section[@aria-labelledby='setup']"]
    assert all("hacked=1</script>" in body.xpath(f"string({place})") for place in places)


def test_the_policy_allows_the_page_its_own_script_and_nothing_else(run):
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', run[2])
    assert "default-src &#39;none&#39;" in policy or "default-src 'none'" in policy
    assert "http" not in policy and "unsafe-eval" not in policy and "script-src 'unsafe" not in policy


def test_the_page_needs_nothing_but_itself(run):
    page = re.sub(r'xmlns(:xlink)?="[^"]*"', "", run[2])
    assert not re.search(r"<link|<img|<iframe|@import|url\((?!#)|\ssrc=|https?://", page)


def test_ids_are_unique_and_headings_in_order(run):
    body = lxml.html.fromstring(run[2])
    ids = body.xpath("//@id")
    assert len(ids) == len(set(ids))
    levels = [int(element.tag[1]) for element in body.iter("h1", "h2", "h3")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(section.attrib["aria-labelledby"] in ids for section in body.iter("section"))


def test_tables_have_captions_and_charts_have_words(run):
    _, results, page = run
    body = lxml.html.fromstring(page)
    for table in body.iter("table"):
        assert table.xpath("string(caption)") and all(head.get("scope") for head in table.iter("th"))
    words = body.xpath("//*[@class='chart']/@aria-label")
    cells = {(c["arm"], c["length"], c["scope"], c["name"]): c for c in results["cells"] if c["length"] != "all"}
    # and the headline, two of latency, heatmaps
    assert len(words) == 1 + len({place[1:] for place in cells}) + 2 + len(results["arms"])
    overall = [text for text in words if text.startswith("overall: accuracy. ")]
    for text, length in zip(overall, (512, 1024), strict=True):
        for arm in ("swa-w64", "sa-w64", "moba-w64"):
            share = percent(cells[arm, length, "overall", "overall"]["accuracy"])
            assert f"{arm} {share} % (" in text and "at 60 keys per query" in text


def test_heatmaps_show_the_mean_of_the_records(run):
    directory, _, page = run
    scores = {}
    for record in directory.records():
        if record.depth is not None:
            place = record.arm, int(record.depth * 5), record.length
            scores.setdefault(place, []).append(record.score)
    _, rows, small = tables(page)["Accuracy in % by depth and length, and answers counted"]
    assert len(rows) == 5 * 4
    for position, (row, fine) in enumerate(zip(rows, small, strict=True)):
        for column, length in ((2, 512), (3, 1024)):
            found = scores[row[0], position % 5, length]
            assert row[column] == percent(np.mean(found)) and fine[column] == f"{len(found)} answers"


def test_documents_that_differ_are_shown_with_all_answers(run):
    directory, _, page = run
    scores = {}
    for record in directory.records():
        scores.setdefault((record.task, record.index), {}).setdefault(record.arm, []).append(record.score)
    means = {place: {arm: np.mean(found) for arm, found in by.items()} for place, by in scores.items()}
    differ = {place for place, by_arm in means.items() if len(set(by_arm.values())) > 1}
    body = lxml.html.fromstring(page)
    cards = body.xpath("//details[@class='document']")
    assert f"different scores on {len(differ):,} documents" in body.text_content()
    assert len(cards) == document_list.MOST and f"the other {len(differ) - len(cards):,} are not" in page
    for card in cards:
        index = int(re.search(r"document (\d+)", card.xpath("string(summary)")).group(1))
        assert {arm: pytest.approx(score, abs=1e-3) for arm, score in json.loads(card.get("data-scores")).items()} == (
            means[card.get("data-task"), index]
        )
        assert card.xpath(".//tr/@data-arm") == ["full", "swa-w64", "sa-w64", "moba-w64"]
        assert "sa-w64 seed 1: an answer" in card.text_content() and "a right answer" in card.text_content()


def test_every_win_and_loss_kind_gets_its_share_of_the_page(run):
    body = lxml.html.fromstring(run[2])
    lost = {(card.get("data-task"), arm) for card, arm in _tally(body, "worse")}
    won = {(card.get("data-task"), arm) for card, arm in _tally(body, "better")}
    tasks = {f"{name}@{length}" for name in FAMILIES for length in (512, 1024)}
    arms = {"swa-w64", "sa-w64", "moba-w64"}
    assert {task for task, _ in lost} == tasks and {arm for _, arm in lost} == arms == {arm for _, arm in won}


def _tally(body, kind):
    for card in body.xpath("//details[@class='document']"):
        for tally in card.xpath(f"summary/span[@class='tally {kind}']"):
            for arm in tally.text.split(" by ")[1].split(", "):
                yield card, arm


def test_the_csv_holds_every_document_that_differs_with_whole_answers(run):
    directory, _, _ = run
    rows = list(csv.DictReader(io.StringIO((directory.path / "figures/documents.csv").read_text(encoding="utf-8"))))
    said = {}
    for record in directory.records():
        said.setdefault((record.task, record.index, record.arm), []).append(record.output)
    assert len(rows) > 4 * document_list.MOST and len({(row["task"], row["index"]) for row in rows}) * 4 == len(rows)
    for row in rows:
        assert json.loads(row["answers"]) == said[row["task"], int(row["index"]), row["arm"]]


def test_no_cell_of_the_csv_starts_a_formula(hostile):
    text = (hostile.path / "figures/documents.csv").read_text(encoding="utf-8")
    cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
    assert len(cells) > 100 and not [cell for cell in cells if cell[:1] in set("=+@\t")]


def test_figures_hold_the_same_numbers_as_the_page(run):
    directory, results, _ = run
    rows = list(csv.DictReader(io.StringIO((directory.path / "figures/accuracy.csv").read_text())))
    cells = {(c["arm"], str(c["length"]), c["name"]): c for c in results["cells"]}
    keys = {(b["arm"], str(b["length"])): b["keys_per_query"] for b in results["budgets"]}
    assert len(rows) == sum(c["length"] != "all" for c in results["cells"])
    for row in rows:
        length = row["figure"].split("-")[2]
        cell = cells[row["arm"], length, row["panel"].replace(" ", "_")]
        assert [float(row[key]) for key in ("accuracy", "low", "high")] == [
            cell[k] for k in ("accuracy", "low", "high")
        ]
        assert float(row["x"]) == keys[row["arm"], length]


def test_figures_are_written_twice_alike(run):
    directory, _, page = run
    folder = directory.path / "figures"
    names = {path.name for path in folder.iterdir()}
    kinds = {"accuracy-family", "accuracy-task", "cost"}
    pictures = {f"{kind}-{length}" for kind in kinds for length in (512, 1024)} | {"depth", "headline"}
    tables_ = {"accuracy.csv", "costs.csv", "depth.csv", "documents.csv"}
    assert names == {f"{name}.{kind}" for name in pictures for kind in ("svg", "png")} | tables_
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    report.write(directory)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before and read(directory) == page
    for name, content in before.items():
        if name.endswith(".png"):
            assert content.startswith(b"\x89PNG") and len(content) > 5_000
        if name.endswith(".svg"):
            assert ElementTree.fromstring(content).tag.endswith("svg") and b"2026" not in content


def test_published_numbers_stand_beside_the_measured_ones(tmp_path):
    given = {"source": "A paper", "models": {"tiny <b>": {64: {"sa": {"average": 66.4, "cloze": 50.0}, "swa": 40.0}}}}
    directory = planted_run(tmp_path / "run", documents=4, lengths="512", published=given)
    results, page = rendered(directory)
    cells = {(c["arm"], c["name"]): percent(c["accuracy"]) for c in results["cells"]}
    _, rows, _ = tables(page)["Published numbers beside those of this run"]
    assert [row[:5] for row in rows] == [
        ["sa-w64", "64", "average", "66.4", cells["sa-w64", "overall"]],
        ["sa-w64", "64", "cloze", "50.0", cells["sa-w64", "cloze"]],
        ["swa-w64", "64", "average", "40.0", cells["swa-w64", "overall"]],
    ]


def test_a_failed_document_says_so_and_an_unfinished_arm_is_not_compared(tmp_path):
    directory = planted_run(tmp_path / "run", documents=4, lengths="512")
    (directory.path / "records" / "moba-w64.seed0.jsonl").unlink()
    record = next(record for record in directory.records() if record.arm == "swa-w64")
    directory.append_records([replace(record, score=0.0, output=None)])
    results, page = rendered(directory)
    assert results["unfinished"] == ["moba-w64"]
    _, rows, _ = tables(page)["Accuracy by arm, 512 tokens: %, 95 % intervals"]
    assert [row[0] for row in rows] == ["full", "swa-w64", "sa-w64"]
    speed = {row[0]: row[2] for row in tables(page)["Latency, decode speed and memory beside accuracy"][1]}
    assert speed["moba-w64"] == "not finished"
    assert not lxml.html.fromstring(page).xpath("//tr[@data-arm='moba-w64']")


def test_a_run_without_answers_still_gets_a_page(tmp_path):
    directory = planted_run(tmp_path / "run", documents=4, lengths="512")
    for file in (directory.path / "records").glob("*"):
        file.unlink()
    titles = lxml.html.fromstring(rendered(directory)[1]).xpath("//h2/text()")
    assert titles[-2:] == ["Failures", "Set-up"] and "Documents won and lost" not in titles


def test_a_merged_report_shows_the_settings_of_every_run(tmp_path):
    directory = planted_run(tmp_path / "run", documents=4, lengths="512")
    manifest = directory.manifest()
    about = {key: getattr(manifest, key) for key in ("started", "settings", "versions", "hardware")}
    other = {**about, "directory": "windows-256", "settings": {**about["settings"], "window": [256]}}
    merged = Merged([{**about, "directory": "windows-64"}, other], differences=[])
    directory.write_manifest(replace(manifest, merged=merged))
    text = lxml.html.fromstring(rendered(directory)[1]).xpath("string(//section[@aria-labelledby='setup'])")
    assert "Put together from 2 runs" in text and "windows-256, 2026-01-01" in text and "window: [256]" in text


@pytest.mark.slow
def test_a_large_report_stays_small(tmp_path, monkeypatch):
    """8 arms x 3 lengths x 9 tasks with 100 documents and 3 seeds, long prompts and answers."""
    tasks = {f"task_{number}": list(PLANTED["full"])[number % 3] for number in range(9)}
    monkeypatch.setitem(planted_run.__globals__, "FAMILIES", tasks)
    modes = ("swa", "sa", "sa-bucket", "sa+swa", "moba", "sa-circular", "sa-dyadic")
    planted = {mode: PLANTED[("full", "swa", "sa", "moba")[number % 4]] for number, mode in enumerate(("full", *modes))}
    directory = planted_run(
        tmp_path / "run", 100, planted, said="a long answer " * 20, lengths="512,1024,2048", seeds="0,1,2"
    )
    summary.summarise(directory)
    report.write(directory)
    assert (directory.path / "report.html").stat().st_size < 3_000_000
