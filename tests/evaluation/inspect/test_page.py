"""The page in a browser: what a person sees and does, on invented reports in which all that it can show is there."""

import copy
import hashlib
import html
import json
import math
import random
import re
import time
from pathlib import Path

import numpy as np
import pytest
from support.browser import CONTRAST
from support.reports import report, run

from fire_opd_trl.evaluation.inspect import page as module
from fire_opd_trl.evaluation.inspect.page import HERE, SCRIPTS, page


# Chromium starts several processes; and a test that measures time wants to run alone.
pytestmark = pytest.mark.launch
LABELS = {
    "student log-prob.": "student_logp",
    "teacher log-prob.": "teacher_logp",
    "student entropy": "student_entropy",
    "teacher entropy": "teacher_entropy",
    "weight": "weight",
    "advantage": "advantage",
}
SHADES = ("weight", "advantage", "student_entropy", "teacher_entropy", "gap", "none")
FIRST = "0.10.0.weight."  # the address of the first trajectory
# Each must be seen as text. The names in brackets are what the page shows of a character that is not seen.
HOSTILE = {
    "<script>alert(1)</script>": "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>": "</script><img src=x onerror=alert(2)>",
    "<!--": "<!--",
    "--><b id='injected'>": "--><b id='injected'>",
    "{{ 7 * 7 }}": "{{ 7 * 7 }}",
    "<0xE2>": "<0xE2>",
    "\u202eevil": "U+202Eevil",
    "שלום": "שלום",
    "مرحبا": "مرحبا",
    "\x00\x1b[31m": "U+0000U+001B[31m",
    "\ud800": "\ud800",  # half a pair, which browsers show as the sign for what is no character
    "": "∅",
    "  ": "··",
    "\n\n": "↵\n↵\n",
    "\t": "→\t",
    "👩‍👩‍👧": "👩‍👩‍👧",
}


def written(folder: Path, *runs: dict) -> Path:
    path = folder / "inspect.html"
    path.write_text(page(report(*runs)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def first() -> dict:
    return run()


@pytest.fixture(scope="module")
def one(tmp_path_factory, first) -> Path:
    return written(tmp_path_factory.mktemp("one"), first)


@pytest.fixture(scope="module")
def two(tmp_path_factory, first) -> Path:
    return written(tmp_path_factory.mktemp("two"), first, run(1, "outputs/second"))


def changed(base: dict, **of_first_trajectory) -> dict:
    """A run of one trajectory, which is changed."""
    copied = copy.deepcopy(base)
    copied["trajectories"] = [{**copied["trajectories"][0], **of_first_trajectory}]
    return copied


def shown(number: float | None) -> str:
    """What the page writes for a number: four decimals, or four digits where these would be zeros."""
    if number is None:
        return "–"
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else "∞" if number > 0 else "−∞"
    text = f"{number:.3e}" if 0 < abs(number) < 0.001 else f"{number:.4f}"
    return re.sub(r"e−0?", "e−", text.replace("-", "−"))


def card(seen) -> dict[str, str]:
    """The numbers in the card of the token that is looked at."""
    seen.wait_for_selector("#token:not([hidden])")
    return dict(
        seen.eval_on_selector_all("#token td[data-value]", "all => all.map(e => [e.dataset.value, e.innerText])")
    )


def entries(seen) -> list[str]:
    return seen.eval_on_selector_all("#list .entry", "all => all.map(e => e.innerText)")


def listed(seen) -> list[tuple[int, int]]:
    """Step and row of each entry of the list."""
    return [tuple(map(int, re.search(r"step (\d+), row (\d+)", entry).groups())) for entry in entries(seen)]


def until(seen, expression: str) -> None:
    """Waits for what an observer does; playwright's own way to wait needs eval, which the page forbids."""
    end = time.monotonic() + 10
    while not seen.evaluate(expression):
        assert time.monotonic() < end, expression
        seen.wait_for_timeout(20)


def title(seen) -> str:
    return seen.locator(".reader h3").first.inner_text()


def tokens_on(seen) -> list[int]:
    return seen.eval_on_selector_all(".t.on", "all => all.map(e => Number(e.dataset.i))")


# Numbers


def test_the_numbers_of_a_token_are_those_of_the_report(visit, one, first):
    seen = visit(one).page
    choose = random.Random(0)
    for number in choose.sample(range(len(first["trajectories"])), 4):
        trajectory = first["trajectories"][number]
        seen.locator("#list .entry").nth(number).click()
        for token in choose.sample(range(len(trajectory["tokens"])), 5):
            seen.locator(f".t[data-i='{token}']").hover()
            said = card(seen)
            assert {label: said[label] for label in LABELS} == {
                label: shown(trajectory[name][token]) for label, name in LABELS.items()
            }
            gap = trajectory["teacher_logp"][token] - trajectory["student_logp"][token]
            assert said["gap"] == shown(gap)
            assert said["position"] == f"{token + 1} of {len(trajectory['tokens'])}"
            assert seen.locator("#token .text").inner_text() == json.dumps(trajectory["tokens"][token])


def test_what_is_not_finite_or_not_recorded_is_said(visit, tmp_path, first):
    numbers = [math.nan, math.inf, -math.inf, None, 1e-7, -0.00012345, 0.0]
    length = len(numbers)
    odd = changed(
        first,
        tokens=list("abcdefg"), trains=[True] * 6 + [False], token_ids=list(range(100, 107)),
        student_logp=numbers, teacher_logp=[-1.0] * length, student_entropy=None, teacher_entropy=None,
        weight=[1.0] * length, advantage=numbers, score=math.nan, reward=None,
    )  # fmt: skip
    seen = visit(written(tmp_path, odd)).page
    for token, number in enumerate(np.float32([0 if one is None else one for one in numbers]).tolist()):
        seen.locator(f".t[data-i='{token}']").hover()
        said, expected = card(seen), None if numbers[token] is None else number
        assert said["student log-prob."] == said["advantage"] == shown(expected)
        assert (said["student entropy"], said["teacher log-prob."], said["id"]) == ("–", "−1.0000", str(100 + token))
        assert said["gap"] == shown(None if expected is None else -1.0 - expected)
    assert said["trains"] == "no, a tool’s" and "idle" in seen.locator(".t[data-i='6']").get_attribute("class")
    assert seen.locator("#shades [data-key=student_entropy]").is_disabled()
    assert "score is NaN" in seen.locator(".why").inner_text()


def test_what_a_tool_wrote_is_marked_counted_and_not_drawn(visit, tmp_path, first):
    texts, own = ["call", "(", "result", ")", "end"], [True, True, False, False, True]
    numbers = {name: [1.0] * 5 for name in LABELS.values()}
    base = changed(first, tokens=texts, **numbers)["trajectories"][0]
    rows = [{**base, "row": row, "trains": trains} for row, trains in enumerate((own, [True] * 5, [False] * 5))]
    seen = visit(written(tmp_path, {**first, "trajectories": rows})).page
    facts, hint = seen.locator(".reader .about"), seen.locator(".reader .hint", has_text="from a tool")
    drawn = "state.readers[0].chart.data.datasets[0].data.map((point) => point.y)"
    for row, by_a_tool in ((0, 2), (1, 0), (2, 0)):  # where nothing trains, the mask does not say who wrote it
        seen.locator("#list .entry").nth(row).click()
        assert ("2 of them by a tool" in facts.inner_text()) == bool(by_a_tool) == bool(hint.count())
        assert [value is None for value in seen.evaluate(drawn)].count(True) == by_a_tool


# Switches, keys, filters


def test_every_switch_shades_the_tokens_and_says_what_it_means(visit, one):
    seen = visit(one, look=FIRST).page
    seen.locator("#list").scroll_into_view_if_needed()
    empty = "Object.assign(document.createElement('canvas'), { width: 140, height: 1 }).toDataURL()"
    until(seen, f"document.querySelector('.entry canvas').toDataURL() !== {empty}")  # a band of colours in the list
    pictures, words = set(), set()
    for key, name in enumerate(SHADES, 1):
        if key % 2:
            seen.locator(f"#shades [data-key={name}]").click()
        else:
            seen.keyboard.press(str(key))
        assert seen.locator("#shades [aria-pressed=true]").get_attribute("data-key") == name
        colours = seen.eval_on_selector_all(".t", "all => all.map(e => e.style.backgroundColor)")
        pictures.add(tuple(colours))
        words.add(seen.locator("#legend").inner_text())
        assert (len(set(colours)) == 1) == (name == "none")
    assert len(pictures) == len(words) == len(SHADES)


def test_the_heaviest_token_has_the_strongest_colour(visit, one, first):
    seen = visit(one, look=FIRST).page
    weights = first["trajectories"][0]["weight"]
    saturated = """i => {
        const colour = getComputedStyle(document.querySelector(`.t[data-i='${i}']`)).backgroundColor;
        const [red, , blue] = colour.match(/\\d+/g).map(Number);
        return red - blue; }"""
    heavy, light = (seen.evaluate(saturated, weights.index(one)) for one in (max(weights), min(weights)))
    assert heavy > 100 > light


def test_the_strip_and_the_tokens_point_at_each_other(visit, one, first):
    seen = visit(one, look=FIRST).page
    lines = "state.readers[0].chart.lines.map(one => one.at)"
    seen.locator(".t[data-i='12']").hover()
    assert tokens_on(seen) == [12] and seen.evaluate(lines) == [13]  # positions count from 1
    area = seen.evaluate("state.readers[0].chart.chartArea")
    half = {"x": (area["left"] + area["right"]) / 2, "y": (area["top"] + area["bottom"]) / 2}
    seen.locator(".strip canvas").hover(position=half)
    length = len(first["trajectories"][0]["tokens"])
    (token,) = tokens_on(seen)
    assert abs(token - length / 2) <= 2 and card(seen)["position"].startswith(f"{token + 1} of")
    for choice in seen.eval_on_selector_all("#strip option", "all => all.map(e => e.value)"):
        seen.select_option("#strip", choice)
        lines_drawn = 2 if choice in ("logps", "entropies") else 1
        assert seen.evaluate("state.readers[0].chart.data.datasets.length") == lines_drawn
    assert choice == "entropies"


def test_the_filters_the_search_and_the_order_choose_what_is_listed(visit, one, first):
    seen = visit(one).page
    all_of = first["trajectories"]
    for name, label, test in [
        ("kept", "dropped", lambda t: not t["kept"]),
        ("kept", "kept", lambda t: t["kept"]),
        ("truncated", "truncated", lambda t: t["truncated"]),
        ("looped", "looped", lambda t: t["looped"]),
        ("teacher", "code", lambda t: t["teacher"] == "code"),
        ("step", "100", lambda t: t["step"] == 100),
    ]:
        expected = [t for t in all_of if test(t)]
        seen.select_option(f"#filter-{name}", label=f"{label} ({len(expected)})")
        assert 0 < len(expected) < len(all_of) and len(entries(seen)) == len(expected)
        assert seen.locator("#count").inner_text() == f"{len(expected)} of {len(all_of)} trajectories"
        assert listed(seen) == [(t["step"], t["row"]) for t in expected]
        seen.click("#clear")
    seen.fill("#reward-from", "0.5")
    assert len(entries(seen)) == sum(t["reward"] >= 0.5 for t in all_of) < len(all_of)
    seen.fill("#reward-to", "0.7")
    assert entries(seen) == [] and "No trajectory fits" in seen.locator("#readers").inner_text()
    seen.click("#clear")
    seen.keyboard.press("/")
    seen.keyboard.type("I FORGOT")
    found = [t for t in all_of if "i forgot" in ("".join(t["tokens"]) + t["prompt"]).lower()]
    assert 0 < len(found) == len(entries(seen)) < len(all_of)
    assert "forgot" in "".join(seen.locator(".t.hit").all_inner_texts())
    seen.click("#clear")
    orders = {
        "score, lowest first": lambda t: t["score"], "score, highest first": lambda t: -t["score"],
        "shortest first": lambda t: len(t["tokens"]), "longest first": lambda t: -len(t["tokens"]),
        "largest weight first": lambda t: -max(t["weight"]), "step": lambda t: (t["step"], t["row"]),
    }  # fmt: skip
    assert set(seen.eval_on_selector_all("#sort option", "all => all.map(e => e.value)")) == set(orders)
    for order, key in orders.items():
        seen.select_option("#sort", order)
        ends = [sorted(all_of, key=key)[place] for place in (0, -1)]
        assert [listed(seen)[place] for place in (0, -1)] == [(t["step"], t["row"]) for t in ends]


def test_the_keys_do_what_the_help_says(visit, one):
    seen = visit(one).page
    press = seen.keyboard.press
    before = title(seen)
    press("j")
    assert title(seen) != before and seen.locator(".entry[aria-selected=true]").count() == 1
    press("k")
    assert title(seen) == before
    seen.locator("#list").focus()
    press("ArrowDown")
    assert title(seen) != before
    press("ArrowUp")
    assert title(seen) == before
    press("ArrowRight")
    press("ArrowRight")
    press("Shift+ArrowRight")
    press("ArrowLeft")
    assert tokens_on(seen) == [10] and card(seen)["position"].startswith("11 of")  # 0, 1, 11, 10
    seen.locator(".tokens").focus()
    press("Enter")
    assert seen.locator("#token.pinned .close").is_visible()
    press("Escape")
    assert seen.locator("#token").is_hidden()
    press("?")
    assert seen.locator("#keys").is_visible() and "side by side" in seen.locator("#keys").inner_text()
    press("Escape")
    assert seen.locator("#keys").is_hidden()
    scheme = "getComputedStyle(document.body).backgroundColor"
    light = seen.evaluate(scheme)
    press("t")
    assert seen.evaluate(scheme) != light
    press("t")
    assert seen.evaluate(scheme) == light
    seen.locator(".bar nav a").first.focus()
    assert seen.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_one_click_puts_a_kept_and_a_dropped_one_of_the_step_side_by_side(visit, one, first):
    seen = visit(one).page
    dropped = next(n for n, t in enumerate(first["trajectories"]) if not t["kept"] and t["step"] == 50)
    seen.locator("#list .entry").nth(dropped).click()
    assert "Dropped by the filter" in seen.locator(".why").inner_text()
    assert seen.locator(".reader .hint").count() == 1  # its weights are 0, and that is said
    seen.click("#opposite")
    titles = seen.locator(".reader h3").all_inner_texts()
    assert [("dropped" in one, "kept" in one) for one in titles] == [(True, False), (False, True)]
    assert all(one.startswith("step 50,") for one in titles)
    left, right = (seen.locator(".reader").nth(place).bounding_box() for place in (0, 1))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    seen.keyboard.press("c")
    assert seen.locator(".reader").count() == 1


def test_the_answer_that_is_shown_first_is_the_kept_one_with_the_largest_advantage(visit, one, first):
    kept = [t for t in first["trajectories"] if t["kept"]]
    most = max(kept, key=lambda t: max(map(abs, t["advantage"])))
    assert most is not first["trajectories"][0]
    seen = visit(one).page
    assert title(seen).startswith(f"step {most['step']}, row {most['row']}")
    outer, inner = (seen.locator(which).bounding_box() for which in ("#list", ".entry[aria-selected=true]"))
    assert outer["y"] <= inner["y"] < outer["y"] + outer["height"]


@pytest.mark.parametrize("height", [560, 900])
def test_the_card_of_a_token_hides_neither_the_token_nor_why_the_answer_was_kept(visit, one, height):
    seen = visit(one, look="0.100.5.gap.opposite", height=height).page
    seen.evaluate("document.querySelector('.why').scrollIntoView({ block: 'center' })")
    hides = """() => {
        const card = document.querySelector("#token").getBoundingClientRect();
        return [...document.querySelectorAll(".t.on, .why, .reader h3, .about")].some(e => {
            const o = e.getBoundingClientRect();
            return card.left < o.right && card.right > o.left && card.top < o.bottom && card.bottom > o.top; }); }"""
    tokens = seen.locator(".reader").first.locator(".t")
    for number in range(0, tokens.count(), 9):
        tokens.nth(number).hover()
        box = seen.locator("#token").bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= height and box["x"] + box["width"] <= 1280
        assert not seen.evaluate(hides)


def test_an_address_shows_the_same_again(visit, one):
    seen = visit(one, look="0.100.5.gap.opposite").page
    assert title(seen).startswith("step 100, row 5") and seen.locator(".reader").count() == 2
    assert seen.locator("#shades [aria-pressed=true]").get_attribute("data-key") == "gap"
    seen.keyboard.press("1")
    assert seen.evaluate("location.hash") == "#look=0.100.5.weight.opposite"


# Curves, figures, watchdogs


def test_curves_figures_and_warnings_are_drawn_and_can_be_read_as_tables(visit, one, first):
    seen = visit(one).page
    said = seen.locator("#watchdogs").inner_text()
    assert "2 times, from step 160 to 180" in said and "lie closer together" in said and "at step 90" in said
    assert seen.locator("#overview").inner_text().count("SmolLM2-135M") == 2
    assert seen.locator("#curve-cards figure:visible").count() == 12
    seen.click("#all-curves")
    assert seen.locator("#curve-cards figure:visible").count() == len(first["curves"])
    seen.evaluate("dispatchEvent(new Event('beforeprint'))")  # draws all charts
    looped = seen.locator("[data-curve='fire/keep_ratio_looped']")
    assert "40 %" in looped.locator("h3").inner_text()
    assert seen.evaluate("Chart.getChart(document.querySelector('[data-curve*=looped] canvas')).scales.y.min") == 0
    marks = seen.evaluate(
        "Chart.getChart(document.querySelector('[data-curve=\"fire/weight_ess\"] canvas')).data.datasets.at(-1).data"
    )
    ess = next(curve for curve in first["curves"] if curve["key"] == "fire/weight_ess")
    assert [(one["x"], one["y"]) for one in marks] == [
        (step, ess["values"][ess["steps"].index(step)]) for step in (160, 180)
    ]
    for figure in first["figures"]:
        card_of = seen.locator(f"[data-figure={figure['id']}]")
        assert figure["title"] in card_of.inner_text() and figure["note"] in card_of.inner_text()
        if figure["kind"] == "none":
            assert card_of.locator("canvas").count() == 0
            continue
        assert figure["title"] in card_of.locator("canvas").get_attribute("aria-label")
        ink = "e => e.getContext('2d').getImageData(0, 0, e.width, e.height).data.some(one => one)"
        assert card_of.locator("canvas").evaluate(ink)
        card_of.locator("summary").click()
        rows = [
            *figure.get("edges", [])[1:],
            *figure.get("x_values", []),
            *figure.get("labels", []),
            *(count for row in figure.get("counts", []) for count in row if count),
        ]
        card_of.locator("tbody").wait_for()
        assert card_of.locator("tbody tr").count() == len(rows)
    bars = next(figure for figure in first["figures"] if figure["kind"] == "bars")
    cells = seen.locator("[data-figure=weight_by_type] tbody tr").first.locator("td").all_inner_texts()
    assert cells == [bars["labels"][0], shown(bars["series"][0]["values"][0]), f"{bars['series'][0]['counts'][0]:,}"]


def test_two_runs_are_laid_over_each_other_and_side_by_side(visit, two):
    seen = visit(two).page
    assert "Nothing." in seen.locator("#watchdogs").inner_text()  # the second run is healthy
    seen.locator("#curve-cards figure").first.scroll_into_view_if_needed()
    first_curve = "Chart.getChart(document.querySelector('#curve-cards canvas'))"
    until(seen, f"{first_curve} !== undefined")
    assert seen.evaluate(f"{first_curve}.data.datasets.map(one => one.label)") == ["outputs/first", "outputs/second"]
    assert seen.locator("[data-figure=scores]").count() == 2
    assert len(entries(seen)) == 80
    seen.select_option("#filter-run", label="outputs/second (40)")
    assert len(entries(seen)) == 40 and "outputs/second" in title(seen)
    seen.click("#other-run")
    titles = seen.locator(".reader h3").all_inner_texts()
    assert "outputs/second" in titles[0] and "outputs/first" in titles[1]
    assert re.search(r"step \d+", titles[0])[0] == re.search(r"step \d+", titles[1])[0]


@pytest.mark.parametrize("width", [360, 700, 1280])
def test_no_word_of_a_curve_s_title_is_broken(visit, tmp_path, first, width):
    curves = [{**one, "title": "Kept of the finished", "unit": "share of finished answers"} for one in first["curves"]]
    seen = visit(written(tmp_path, {**first, "curves": curves}), width=width).page
    lines_of_words = """all => all.flatMap(e => [...e.textContent.matchAll(/\\S+/g)].map(word => {
        const range = document.createRange();
        range.setStart(e.firstChild, word.index);
        range.setEnd(e.firstChild, word.index + word[0].length);
        return new Set([...range.getClientRects()].map(r => r.top)).size; }))"""
    assert set(seen.eval_on_selector_all("#curve-cards figure:not([hidden]) h3 span", lines_of_words)) == {1}
    assert seen.evaluate("""[...document.querySelectorAll("#curve-cards figure:not([hidden]) h3")]
        .every(e => e.scrollWidth <= e.clientWidth)""")


def test_a_pair_without_a_training_has_numbers_and_no_watchdogs_and_no_curves(visit, tmp_path, first):
    facts = [["does the teacher fit?", "fits"], *first["facts"]]
    pair = {**first, "trained": False, "watchdogs": [], "facts": facts}
    pair["curves"] = [
        {**one, "steps": [0], "values": [value]}
        for one, value in zip(first["curves"][1:5], [0.25, 31.5, 0.5, 40.0], strict=True)
    ]
    seen = visit(written(tmp_path, pair)).page
    assert seen.locator("#watchdogs, #curves canvas").count() == 0
    assert seen.locator("nav a").all_inner_texts() == ["Numbers", "Figures", "Trajectories"]
    table = [row.split("\t") for row in seen.locator("#curve-table tr").all_inner_texts()]
    assert table[0] == ["Distance to the teacher", "0.25 nats", "Reverse KL on the student's own tokens."]
    assert table[3][1] == "40 %" and len(table) == 4
    verdict = seen.locator(".verdict dd")
    assert verdict.inner_text() == "fits" and "would train the student" in seen.locator(".why").inner_text()


def test_a_run_with_nothing_in_it_says_so(visit, tmp_path):
    lists = ("facts", "watchdogs", "curves", "figures", "trajectories")
    empty = {"name": "new", "about": "A run.", "trained": True, **{name: [] for name in lists}, "left_out": 0}
    seen = visit(written(tmp_path, empty)).page
    assert "log_rollouts" in seen.locator("#trajectories").inner_text()
    assert seen.locator("#curves").is_hidden() and seen.locator("#broken").is_hidden()


def test_a_trajectory_without_tokens_is_shown(visit, tmp_path, first):
    nothing = changed(
        first, tokens=[], trains=[], kept=False, dropped_because="empty", **{name: [] for name in LABELS.values()}
    )
    nothing["trajectories"].append(next(t for t in first["trajectories"] if t["kept"] and t["step"] == 50))
    seen = visit(written(tmp_path, nothing), look=FIRST).page
    assert "none of its tokens can train" in seen.locator(".why").inner_text()
    assert "no tokens" in seen.locator(".tokens").inner_text()
    assert seen.locator("#opposite").is_disabled()  # the kept one is of another step


# Hostile and large


def test_hostile_texts_are_harmless_and_visible(visit, tmp_path, first):
    texts, length = list(HOSTILE), len(HOSTILE)
    long = "<b>x</b>" * 12_500  # 100 kB
    numbers = {name: [0.5] * (length + 1) for name in LABELS.values()}
    odd = changed(
        first, tokens=[*texts, long], trains=[True] * (length + 1), prompt=" ".join(texts), teacher=texts[0], **numbers
    )
    odd.update(name=texts[1], facts=[[texts[0], texts[3]]], watchdogs=[{**first["watchdogs"][0], "says": texts[1]}])
    for curve in odd["curves"]:
        curve.update(title=texts[0], help=texts[1])
    for figure in odd["figures"]:
        figure.update(title=texts[0], note=texts[2])
    seen = visit(written(tmp_path, odd)).page
    for number, text in enumerate(HOSTILE.values()):
        assert seen.locator(f".t[data-i='{number}']").evaluate("e => e.textContent") == text
    assert seen.locator("img, #injected, .tokens b, .tokens script").count() == 0
    assert texts[1] in seen.locator("#watchdogs").inner_text() and texts[1] in seen.locator("h1").inner_text()
    assert "alert(1)" in seen.locator("#curve-cards").inner_text() and "<!--" in seen.locator(".prompt").inner_text()
    assert seen.locator(".t[data-i='6']").evaluate("e => getComputedStyle(e).unicodeBidi") == "isolate"
    last = seen.locator(f".t[data-i='{length}']")
    assert "(100,000 characters)" in last.inner_text() and len(last.inner_text()) < 300
    last.click()
    seen.locator("#token summary").click()
    whole = seen.locator("#token pre").inner_text()
    assert len(whole) == 100_002 and whole.startswith('"<b>x</b>')  # with its quotation marks
    seen.keyboard.press("Escape")
    seen.locator(".t[data-i='6']").click()
    assert seen.locator("#token .text").inner_text() == '"\\u202eevil"'


def test_two_hundred_trajectories_of_a_thousand_tokens_open_fast_and_are_small(visit, tmp_path, record_property):
    large = run(steps=range(10, 110, 10), rows=20, length=(1000, 1000))
    path = written(tmp_path, large)
    megabytes = path.stat().st_size / 1e6
    begin = time.perf_counter()
    seen = visit(path).page
    seconds = time.perf_counter() - begin
    record_property("megabytes", megabytes)
    record_property("seconds", seconds)
    assert seen.locator("#list .entry").count() == 200 and seen.locator(".t").count() == 1000
    assert megabytes < 10 and seconds < 3
    assert seen.evaluate("document.querySelectorAll('*').length") < 5000  # one trajectory's tokens, not all 200,000


def test_a_very_long_trajectory_is_drawn_piece_by_piece(visit, tmp_path, first):
    numbers = {name: [0.5] * 4500 for name in LABELS.values()}
    seen = visit(written(tmp_path, changed(first, tokens=["a "] * 4500, trains=[True] * 4500, **numbers))).page
    assert seen.locator(".t").count() == 2000
    seen.locator(".more").click()
    assert seen.locator(".t").count() == 4000
    area = seen.evaluate("state.readers[0].chart.chartArea")
    seen.locator(".strip canvas").hover(position={"x": area["right"] - 1, "y": area["top"] + 5})
    assert seen.locator(".t").count() == 4500 and tokens_on(seen)[0] > 4400


# Looks


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_on_every_shade(visit, one, scheme):
    """WCAG 2: a contrast of 4.5 or more, from the lightest to the darkest shade, and for grey text."""
    seen = visit(one, scheme=scheme).page
    for shade in SHADES:
        seen.locator(f"#shades [data-key={shade}]").click()
        ends = seen.evaluate("new Set([...document.querySelectorAll('.t')].map(e => e.style.backgroundColor)).size")
        assert seen.evaluate(CONTRAST, ".t") >= 4.5 and (ends > 20 or shade == "none")
    assert seen.evaluate(CONTRAST, "p, h1, h2, h3, dt, dd, .badge, .small, button:not(:disabled), summary") >= 4.5


def test_a_phone_shows_it_without_scrolling_sideways(visit, two):
    opened = visit(two, width=360, height=740, scheme="dark", touch=True)
    seen = opened.page
    wide = "document.documentElement.scrollWidth <= innerWidth"
    assert seen.evaluate(wide)
    seen.click("#opposite")
    seen.locator(".t[data-i='3']").first.tap()
    assert card(seen)["position"].startswith("4 of") and seen.evaluate(wide)
    box = seen.locator("#token").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["y"] + box["height"] <= 740
    seen.locator("#token .close").tap()
    assert seen.locator("#token").is_hidden()


def test_it_prints_the_trajectory_and_every_chart(visit, one, tmp_path):
    opened = visit(one)
    opened.page.pdf(path=tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().count(b"/Type /Page\n") >= 2
    opened.page.emulate_media(media="print")
    assert opened.page.locator("#filters").is_hidden() and opened.page.locator(".tokens").is_visible()
    assert opened.page.evaluate("charts.filter(one => one.canvas.offsetParent).every(one => one.chart)")


# The file


def test_the_file_names_no_other_and_allows_none(one):
    text = one.read_text(encoding="utf-8")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    directives = dict(part.strip().split(" ", 1) for part in html.unescape(policy).split(";"))
    assert directives["default-src"] == "'none'" and "unsafe" not in policy
    assert len(directives["script-src"].split()) == len(SCRIPTS) == text.count("<script>")
    assert "sourceMappingURL" not in text
    for license in ("Chart.js Contributors", "Jukka Kurkela"):
        assert license in html.unescape(text)


def test_every_script_of_the_folder_is_in_the_page():
    assert {HERE / name for name in SCRIPTS} == {*HERE.glob("vendor/*.js"), *HERE.glob("script/*.js")}


def test_the_vendored_files_are_those_that_their_readme_names():
    readme = (HERE / "vendor" / "README.md").read_text()
    sums = dict(re.findall(r"\| `([\w.-]+\.js)` \|.*\| `(\w{64})` \|", readme))
    assert sums == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in HERE.glob("vendor/*.js")}


def test_numbers_survive_packing_to_the_bit():
    numbers = [0.1, -0.0, math.nan, math.inf, -math.inf, None, 1e-45, 3.4e38]
    bits = module.bits_of(numbers)
    assert bits[5] == module.NOTHING and [module.NOTHING] == bits[bits == module.NOTHING].tolist()
    expected = np.array([0 if one is None else one for one in numbers], np.float32).view(np.uint32)
    assert np.delete(bits, 5).tolist() == np.delete(expected, 5).tolist()
    planes = np.frombuffer(module.planes(bits), np.uint8).reshape(4, -1)
    assert planes.T.copy().view("<u4").ravel().tolist() == bits.tolist()


def test_a_pair_that_was_not_trained_is_not_called_healthy(first):
    reason = "Nothing was trained, so that they had nothing to watch."
    html_of_pair = page(report({**first, "watchdogs": [], "unwatched": reason}))
    assert f'<p class="card">{reason}</p>' in html_of_pair and 'class="card healthy"' not in html_of_pair
    assert 'class="card healthy"' in page(report({**first, "watchdogs": []}))
