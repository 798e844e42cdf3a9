"""The report: one well-formed page that needs nothing else, and that a browser draws."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpower.evaluate.engine import local_engine
from fastpower.evaluate.evaluation import Evaluation, evaluate
from fastpower.evaluate.report import charts, write_report
from fastpower.evaluate.report.report import environment, page
from fastpower.evaluate.report.svg import Chart, log_ticks, ticks
from fastpower.evaluate.runs import read_records
from fastpower.evaluate.summary import Row, summarise, wall_clock
from fastpower.results import traces
from fastpower.results.colours import DARK
from fastpower.samplers.methods import parse_methods
from tests.evaluate.toys import toy_model, toy_task

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    methods = parse_methods("plain,mh(moves=4,block=4),tempering(moves=2),smc(particles=6,block=2,ramp=0)")
    evaluate(Evaluation(toy_task(7), methods, seed=2, chains=2), local_engine(toy_model), path)
    records = read_records(path, timings=True)
    return write_report(path, records, summarise(records, chains=2))


def _tree(report: Path) -> ElementTree.Element:
    return ElementTree.fromstring(report.read_text().removeprefix("<!DOCTYPE html>\n"))


def test_the_page_is_well_formed_and_needs_no_other_file(report: Path) -> None:
    text = report.read_text()
    root = _tree(report)
    assert not re.search(r"https?://|@import|url\(", text)
    assert not [e.attrib for e in root.iter() if {"src", "href"} & set(e.attrib)]
    assert [h.text for h in root.iter("h2")] == ["Methods", "Problems", "Answers"]


def test_every_method_and_every_shown_answer_is_there(report: Path) -> None:
    root = _tree(report)
    records = read_records(report.parent)
    methods = list(dict.fromkeys(r["method"] for r in records))
    body = next(root.iter("tbody"))
    assert [row[0].find("i").tail for row in body] == methods  # type: ignore[union-attr]
    articles = list(root.iter("article"))
    assert len(articles) == 7 * len(methods)
    heat = [["".join(span.itertext()) for span in d] for d in root.iter("div") if d.get("class") == "answer"]
    assert all(heat)
    captions = ["".join(c.itertext()) for c in root.iter("figcaption")]
    assert {"Accuracy against tokens decoded", "Accuracy against wall clock", "Acceptance by cut position"} <= {
        *captions
    }
    assert any("where moves cut" in c for c in captions)
    assert {"Effective sample size", "Genealogy of the particles"} <= {*captions}


def test_text_from_a_model_cannot_break_the_page(report: Path, tmp_path: Path) -> None:
    records = read_records(report.parent, timings=True)
    evil = (
        '</span><script>alert("x")</script>&amp;<img src="http://x">\x00\x1b\ud800 $\\text{<script>y</script>}$ {{ 7 }}'
    )
    versions = json.loads((report.parent / "config.json").read_text())
    versions["config"] |= {"task": evil, "model": {"name": evil, "dtype": evil}}
    for record in records:
        record |= {"token_text": [evil] * len(record["token_ids"]), "answer": evil, "question": evil, "reference": evil}
        record |= {"problem": evil + record["problem"], "note": evil, "method": evil + record["method"]}
    (tmp_path / "config.json").write_text(json.dumps(versions))
    written = write_report(tmp_path, records, summarise(records))
    root = _tree(written)
    assert len(list(root.iter("script"))) == 1 and not list(root.iter("img"))
    assert "\u2400\u241b\ufffd" in written.read_text() and "{{ 7 }}" in written.read_text()


def test_every_template_escapes() -> None:
    names = environment().list_templates()
    assert {"report.html", "answers.html", "problems.html", "report.css", "report.js"} <= set(names)
    assert environment().from_string("{{ a }}").render(a="<b>&") == "&lt;b&gt;&amp;"
    sources = [environment().loader.get_source(environment(), name)[0] for name in names]  # type: ignore[union-attr]
    assert not [source for source in sources if re.search(r"\|\s*safe|autoescape", source)]


def test_the_table_of_problems_counts_right_answers(report: Path) -> None:
    records = read_records(report.parent)
    table = next(t for t in _tree(report).iter("table") if t.get("id") == "problems")
    methods = ["".join(th.itertext()) for th in table.iter("th")][3:]
    lines = [["".join(cell.itertext()).strip() for cell in row] for row in list(table.iter("tr"))[1:]]
    assert [line[0] for line in lines] == list(dict.fromkeys(r["problem"] for r in records))
    for name, _, _, *cells in lines:
        for method, cell in zip(methods, cells, strict=True):
            group = [r for r in records if (r["problem"], r["method"]) == (name, method)]
            assert cell == f"{sum(r['correct'] for r in group)} of {len(group)}"


def test_the_tables_as_csv_hold_the_numbers_of_the_rows(report: Path) -> None:
    records = read_records(report.parent, timings=True)
    rows = summarise(records, chains=2)
    with (report.parent / "methods.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines] == [row.method for row in rows]
    for line, row in zip(lines, rows, strict=True):
        assert float(line["accuracy"]) == row.accuracy.mean and float(line["logp"]) == row.logp
        assert line["difference"] == ("" if row.against is None else str(row.against.mean))
        assert line["acceptance"] == ("" if row.acceptance is None else str(row.acceptance))
    with (report.parent / "problems.csv").open(newline="", encoding="utf-8") as file:
        problems = list(csv.DictReader(file))
    assert len(problems) == 7 * len(rows)
    assert sum(int(line["right"]) for line in problems) == sum(bool(r["correct"]) for r in records)


def _rows(accuracies: Sequence[float], problems: int = 30) -> list[Row]:
    records = [
        {"method": f"mh(moves={m},block={4 * m},cuts='entropy',chains={m * m})", "problem": f"p{p}", "chain": 0}
        | {"correct": p < round(rate * problems), "answer": "1", "logp": -1.0, "token_ids": [1], "ended": True}
        | {"decoded_tokens": 20 + m}
        for m, rate in enumerate(accuracies)
        for p in range(problems)
    ]
    return summarise(records)


@pytest.mark.parametrize("accuracies", [(0.0, 0.0), (1.0, 0.97, 1.0), (0.03, 0.99), (0.5, 0.5, 0.5, 0.5)])
def test_accuracies_stay_within_the_axis_and_labels_name_every_setting(accuracies: tuple[float, ...]) -> None:
    rows = _rows(accuracies)
    svg = charts.accuracy_against(rows, [row.decoded_tokens for row in rows], "tokens")
    assert svg is not None
    root = ElementTree.fromstring(svg)
    shown = [float(t.text.split()[0]) for t in root.iter("text") if (t.text or "").endswith(" %")]  # type: ignore[union-attr]
    assert min(shown) >= 0 and max(shown) <= 100
    labels = [t for t in root.iter("text") if t.get("class") == "label"]
    text = "".join(str(t.text) for t in labels)
    assert all(part + "," in text or part in text for row in rows for part in row.method.split(","))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    spots = [(float(t.attrib["x"]), float(t.attrib["y"]), 3.0 * len(str(t.text))) for t in labels]
    assert all(10 < y < height and 0 < x < width for x, y, _ in spots)
    for i, (x, y, half) in enumerate(spots):  # no label over another
        assert not [1 for a, b, other in spots[:i] if abs(x - a) < half + other and abs(y - b) < 11]


@pytest.mark.parametrize(
    "method", ["plain", "mh(moves=2)", "smc(" + ",".join(f"setting_{i}={i}" for i in range(9)) + ")"]
)
def test_a_label_loses_nothing_and_is_broken_where_it_is_long(method: str) -> None:
    lines = charts.label_lines(method)
    assert "".join(lines) == method and max(map(len, lines)) <= 44


@pytest.mark.parametrize("problems, warned", [(1, True), (19, True), (20, False)])
@pytest.mark.filterwarnings("ignore:a bootstrap over")
def test_a_run_over_few_problems_says_so(problems: int, warned: bool) -> None:
    text = page({"task": "t"}, {}, [], _rows([0.5, 0.6], problems))
    assert (f"<b>{problems} problem{'' if problems == 1 else 's'} only.</b>" in text) == warned


def test_log_p_over_moves_is_per_token_and_of_the_last_stage() -> None:
    moves = [(0, 4, -8.0), (1, 8, -8.0), (1, 10, -5.0)]
    trace = [{"stage": s, "cut": 1, "accepted": True, "length": n, "logp": v} for s, n, v in moves]
    svg = charts.logp_over_moves({"mh": [_record(trace=trace)]}, {"mh": "#000"})
    assert re.findall(r"mh, move (\d): (\S+) nats per token", str(svg)) == [("1", "-1.000"), ("2", "-0.500")]


def test_every_colour_of_a_chart_has_one_for_dark_pages(report: Path) -> None:
    svgs = re.findall(r"<svg.*?</svg>", report.read_text(), re.S)
    used = {c for svg in svgs for c in re.findall(r'(?:fill|stroke)="(#\w+)"', svg)}
    assert used and used <= set(DARK)
    assert len({c.lower() for c in DARK}) == len(DARK)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_phone_scrolls_tables_and_charts_but_not_the_page(report: Path, tmp_path: Path) -> None:
    frame = tmp_path / "frame.html"
    onload = "document.title = 'width ' + this.contentDocument.documentElement.scrollWidth"
    page = f'<iframe width="375" height="800" style="border:0" onload="{onload}" srcdoc="{escape(report.read_text())}">'
    frame.write_text(f'<meta charset="utf-8">{page}</iframe>')
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"]
    dom = subprocess.run([str(BROWSER), *flags, frame.as_uri()], capture_output=True, text=True, timeout=120).stdout
    assert "<title>width 375</title>" in dom


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_sorts_problems_and_shows_two_methods_side_by_side(report: Path, tmp_path: Path) -> None:
    acts = """<script>
    document.querySelectorAll("[data-column]")[2].click(); document.querySelectorAll("[data-column]")[2].click();
    document.querySelectorAll("[data-open]")[0].click();
    beside.value = "0"; beside.dispatchEvent(new Event("change"));</script></body>"""
    copy = tmp_path / "acted.html"
    copy.write_text(report.read_text().replace("</body>", acts))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    dom = subprocess.run([str(BROWSER), *flags, copy.as_uri()], capture_output=True, text=True, timeout=120).stdout
    table = dom[dom.index('<table id="problems"') : dom.index("</table>", dom.index('<table id="problems"'))]
    right = [float(line[2]) for row in table.split("<tr>")[2:] if (line := re.findall('data-sort="([^"]*)"', row))]
    assert len(right) == 7 and right == sorted(right, reverse=True) and right[0] > right[-1]
    opened = re.search(r'data-open="(\d+)"', table)
    visible = re.findall(r'<article data-card="(\d+)-(\d+)">', dom)
    assert opened is not None and [p for p, _ in visible] == [opened[1]] * 2
    assert visible[0][1] == "0" and 'class="cards two"' in dom


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_runs_the_page_and_shows_one_answer(report: Path, tmp_path: Path) -> None:
    shot = tmp_path / "report.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,1800"]
    url = report.as_uri()
    dom = subprocess.run([str(BROWSER), *flags, "--dump-dom", url], capture_output=True, text=True, timeout=120).stdout
    body = re.search(r"<body[^>]*>", dom)
    assert body is not None and 'class="by-entropy"' in body[0]  # the script ran to its end …
    visible = re.findall(r"<article data-card=\"([^\"]+)\">", dom)
    hidden = re.findall(r"<article data-card=\"([^\"]+)\" hidden", dom)
    assert len(visible) == 1 and len(hidden) > 1  # … and left one answer in sight
    subprocess.run([str(BROWSER), *flags, f"--screenshot={shot}", url], capture_output=True, timeout=120, check=True)
    pixels = pytest.importorskip("matplotlib.image").imread(shot)[..., :3]
    assert pixels.shape[:2] == (1800, 1280)
    dark = (pixels.mean(axis=2) < 0.35).mean()
    assert 0.001 < dark < 0.2 and np.median(pixels) > 0.9  # ink on a light page, neither blank nor black


def _record(**extra: Any) -> dict[str, Any]:
    n = 9
    numbers = np.linspace(0.1, 2.0, n).tolist()
    return {"token_ids": list(range(n)), "entropy": numbers, "token_logp": [-x for x in numbers], "trace": []} | extra


def test_moves_of_a_tempering_record_are_those_of_the_rung_that_answers() -> None:
    move = {"stage": 0, "cut": 1, "accepted": True, "length": 9, "logp": -1.0}
    record = _record(trace=[move | {"rung": k} for k in (0, 1, 2, 0, 1, 2)])
    assert [m["rung"] for m in traces.moves_of(record)] == [2, 2]


def test_acceptance_by_position_counts_moves_where_they_cut() -> None:
    moves = [(0, True, 10), (5, False, 10), (5, True, 20), (19, False, 20), (5, True, 20)]
    trace = [{"cut": c, "accepted": a, "length": n, "logp": 0.0} for c, a, n in moves]
    rates, counts = traces.acceptance_by_position([_record(trace=trace)])
    assert counts.tolist() == [1, 0, 1, 0, 0, 2, 0, 0, 0, 1]  # a cut is placed in the answer before its move
    assert rates[[0, 2, 5, 9]].tolist() == [1.0, 1.0, 0.5, 0.0]


def test_lineage_follows_ancestors_back_from_the_answer() -> None:
    steps = [{"position": 4, "ess": 1.5, "resampled": True, "ancestors": [2, 0, 2]}]
    steps += [{"position": 8, "ess": 2.5, "resampled": True, "ancestors": [1, 1, 0]}]
    record = _record(trace=steps, diagnostics={"particles": 3, "particle": 2})
    assert traces.lineage(record) == [2, 0, 2]
    svg = charts.genealogy(record)
    assert svg is not None and svg.count("<line") >= 6 + 2
    assert traces.ess_curve(record) == ([4, 8], [1.5, 2.5], [True, True])


def test_entropy_chart_has_one_mark_per_move_and_sets_accepted_apart() -> None:
    moves = [(3, True), (5, False), (0, True)]
    trace = [{"stage": 0, "cut": c, "accepted": a, "length": 9, "logp": -2.0} for c, a in moves]
    svg = charts.entropy_and_cuts(_record(trace=trace))
    root = ElementTree.fromstring(svg)
    titles = [t.text for t in root.iter("title")]
    assert titles == [
        "move 1, cut at token 3: accepted, log p -2.00",
        "move 2, cut at token 5: rejected, log p -2.00",
        "move 3, cut at token 0: accepted, log p -2.00",
    ]
    xs = [float(c.attrib["cx"]) for c in root.iter("circle")]
    assert xs[2] < xs[0] < xs[1]


def test_wall_clock_is_the_union_of_intervals() -> None:
    spans = [(0.0, 2.0), (1.0, 3.0), (10.0, 11.0), (10.2, 10.4)]
    assert wall_clock([{"finished": b, "seconds": b - a} for a, b in spans]) == pytest.approx(4.0)
    assert wall_clock([{}]) is None


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-3.7, 12.9), (0.001, 0.0013), (5.0, 50_000.0)])
def test_ticks_are_inside_round_and_several(low: float, high: float) -> None:
    assert 2 <= len(ticks(low, high)) <= 12
    for found in (ticks(low, high), log_ticks(max(low, 1e-3), high)):
        assert all(low - 1e-9 <= value <= high * (1 + 1e-9) for value in found)


def test_a_chart_with_a_single_point_still_has_an_extent() -> None:
    chart = Chart("t", "x", "y", (3.0, 3.0), (0.0, 0.0))
    chart.dot(3.0, 0.0, "#000")
    svg = chart.svg()
    ElementTree.fromstring(svg)
    assert "nan" not in svg and "inf" not in svg
