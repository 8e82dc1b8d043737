"""
A headless Chromium for the page of `fire-opd inspect`: in tests, and to make pictures of it.

    PYTHONPATH=tests python -m support.browser RUN/inspect.html picture.png --section trajectories --trajectory 200.3
"""

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = f"no Chromium: none of {', '.join(NAMES)} is on the path (Debian, Ubuntu: apt-get install chromium)"
# CI sets it, so that a browser that is not there fails a test instead of skipping it.
REQUIRED = "FIRE_OPD_TEST_BROWSER"
# The lowest contrast of the texts that a selector finds, as WCAG 2 defines it: 4.5 is legible.
CONTRAST = """selector => {
    const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(x => x / 255).map(x => x <= 0.04045 ? x / 12.92
        : ((x + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
        if (!/, 0\\)$/.test(c)) return c; } return "rgb(255, 255, 255)"; };
    return Math.min(...[...document.querySelectorAll(selector)].map(e => {
        const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); })); }"""


def chromium() -> str | None:
    """The path of the first browser that is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def open_browser() -> Iterator:
    """A browser that playwright drives; it downloads none."""
    from playwright.sync_api import sync_playwright

    path = chromium()
    if path is None:
        raise FileNotFoundError(MISSING)
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # root has no sandbox
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


class Visit:
    """A page that is open, and what happened in it that must not."""

    def __init__(self, browser, html: Path, width=1280, height=900, scheme="light", scale=1, look="", touch=False):
        self.context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            device_scale_factor=scale,
            has_touch=touch,
        )
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("console", lambda message: self.faults.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("request", self.note_request)
        self.page.on("dialog", self.note_dialog)
        self.address = html.resolve().as_uri()
        self.page.goto(self.address + (f"#look={look}" if look else ""))
        self.page.wait_for_selector("html[data-ready=yes]", timeout=20_000)

    def note_request(self, request):
        if request.url.split("#")[0] != self.address and not request.url.startswith(("data:", "blob:")):
            self.faults.append(f"request: {request.url}")

    def note_dialog(self, dialog):
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()


@pytest.fixture(scope="module")
def browser():
    """One browser for all tests of a file; without one they are skipped, in CI they fail."""
    if chromium() is None and not os.environ.get(REQUIRED):
        pytest.skip(MISSING)
    with open_browser() as opened:
        yield opened


@pytest.fixture
def visit(browser):
    """`visit(html_path, width=...)`: a page in the browser; at the end it must have logged and asked for nothing."""
    visits: list[Visit] = []

    def open_page(html: Path, **options) -> Visit:
        visits.append(Visit(browser, html, **options))
        return visits[-1]

    yield open_page
    faults = [fault for one in visits for fault in one.faults]
    for one in visits:
        one.context.close()
    assert faults == []


def picture(
    html: Path,
    png: Path,
    section: str | None = None,
    whole: bool = False,
    fold: bool = False,
    token: int | None = None,
    **options,
) -> None:
    """Write what a browser shows of a page: its first screen, a section, or all of it."""
    with open_browser() as browser:
        visit = Visit(browser, html, **options)
        if section:
            visit.page.evaluate("id => document.getElementById(id).scrollIntoView()", section)
        if fold:
            for prompt in visit.page.locator(".prompt summary").all():
                prompt.click()
        if token is not None:
            visit.page.locator(f".t[data-i='{token}']").first.hover()
        visit.page.wait_for_timeout(400)  # charts are drawn when they come into view
        visit.page.screenshot(path=png, full_page=whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("html", type=Path)
    parser.add_argument("png", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--scale", type=float, default=1, help="pixels of the picture for each pixel of the page")
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--section", help="overview, watchdogs, curves, figures or trajectories")
    parser.add_argument("--whole", action="store_true", help="the whole page, however long it is")
    parser.add_argument("--trajectory", help="STEP.ROW, or RUN.STEP.ROW with RUN 0 or 1")
    parser.add_argument("--shade", default="weight", help="weight, advantage, gap, none, or an entropy")
    parser.add_argument("--beside", choices=("opposite", "run"), default="", help="what stands beside the trajectory")
    parser.add_argument("--fold", action="store_true", help="fold the prompts")
    parser.add_argument("--token", type=int, help="the token, counted from 0, whose numbers are shown")
    options = vars(parser.parse_args())
    trajectory, shade, beside = (options.pop(name) for name in ("trajectory", "shade", "beside"))
    if trajectory:
        place = trajectory if trajectory.count(".") == 2 else f"0.{trajectory}"
        options["look"] = f"{place}.{shade}.{beside}"
        options["section"] = options["section"] or "trajectories"
    picture(**options)


if __name__ == "__main__":
    main()
