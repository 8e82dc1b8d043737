"""The site of the docs is built without a warning; its links lead somewhere, and it loads nothing from other hosts."""

import importlib.util
import io
import re
from dataclasses import fields
from html.parser import HTMLParser
from inspect import get_annotations
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from support.browser import browser  # noqa: F401
from support.documents import ROOT

import fire_opd_trl
from fire_opd_trl import METHODS, FiReOPDConfig, stages


# What `make gpu` writes where there is a GPU.
STILL_WRITTEN = {"docs/gpu/report"}
LINKS = {"a": ("href",), "img": ("src",), "script": ("src",), "link": ("href",), "source": ("src", "srcset")}


class Page(HTMLParser):
    """The links of a page, those that load something, and what they can point at."""

    def __init__(self, html: str):
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.names: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("id", "name") and value:
                self.names.add(value)
            if value and name in LINKS.get(tag, ()):
                (self.links if tag == "a" else self.loaded).append(value)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, str]:
    """The site, and what Sphinx has warned of."""
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    folder, warnings = tmp_path_factory.mktemp("site"), io.StringIO()
    with patch_docutils(str(ROOT / "docs")), docutils_namespace():
        Sphinx(ROOT, ROOT / "docs", folder, folder / ".doctrees", "html", status=None, warning=warnings).build()
    return folder, warnings.getvalue()


@pytest.fixture(scope="module")
def pages(built) -> dict[Path, Page]:
    return {path: Page(path.read_text()) for path in built[0].rglob("*.html")}


@pytest.fixture(scope="module")
def navigation() -> list[str]:
    spec = importlib.util.spec_from_file_location("docs_conf", ROOT / "docs" / "conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [page for pages in module.NAVIGATION.values() for page in pages.values()]


def test_the_site_is_built_without_a_warning(built):
    assert built[1] == ""
    assert (built[0] / "index.html").exists() and (built[0] / "docs" / "index.html").exists()


def test_every_page_is_in_the_navigation_once(navigation):
    there = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md"), *ROOT.glob("*.md")]
    names = {path.relative_to(ROOT).with_suffix("").as_posix() for path in there} - {"docs/index"}
    assert len(set(navigation)) == len(navigation)
    assert names - set(navigation) == set()
    assert set(navigation) - names == {name for name in STILL_WRITTEN if name not in names}


def test_links_lead_somewhere(pages):
    broken = []
    for path, page in pages.items():
        for link in (*page.links, *page.loaded):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                well_formed = parts.scheme in ("http", "https") and re.fullmatch(r"[\w.-]+\.\w+(:\d+)?", parts.netloc)
                if not (well_formed or parts.scheme in ("mailto", "data")):
                    broken.append((path.name, link))
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                broken.append((path.name, link))
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].names:
                broken.append((path.name, link))
    assert broken == []


def test_nothing_is_loaded_from_another_host(built, pages):
    foreign = re.compile(r"^(\w+:)?//")
    assert [(path.name, link) for path, page in pages.items() for link in page.loaded if foreign.match(link)] == []
    for style in built[0].rglob("*.css"):
        loaded = re.findall(r"(?:url\(|@import\s+)['\"]?([^'\")\s]+)", style.read_text())
        assert [link for link in loaded if foreign.match(link)] == [], style


def test_the_reference_has_every_public_name(built, pages):
    def names(page: str) -> set[str]:
        return pages[built[0] / "docs" / "api" / f"{page}.html"].names

    public = {f"fire_opd_trl.{name}" for name in fire_opd_trl.__all__ if name != "METHODS"}
    assert public <= names("trainer") | names("config") | names("pipeline")
    assert {f"fire_opd_trl.methods.{recipe.__name__}" for recipe in METHODS.values()} <= names("methods")
    functions = {name for name, thing in vars(stages).items() if callable(thing) and name[0].islower()}
    assert {f"fire_opd_trl.stages.{name}" for name in functions if not name.startswith("_")} <= names("stages")
    text = (built[0] / "docs" / "api" / "config.html").read_text()
    own = [one.name for one in fields(FiReOPDConfig) if one.name in get_annotations(FiReOPDConfig)]
    assert len(own) > 20 and [name for name in own if f"<strong>{name}</strong>" not in text] == []


def test_the_source_that_a_name_links_to_is_the_right_line(built):
    page = (built[0] / "docs" / "api" / "pipeline.html").read_text()
    (line,) = re.findall(
        r'href="../../source/fire_opd_trl/pipeline.py.html#L-(\d+)"[^>]*>(?:(?!</dt>).)*distil"', page
    )
    assert (ROOT / "fire_opd_trl" / "pipeline.py").read_text().splitlines()[int(line)].startswith("def distil(")


def test_a_browser_finds_a_word_and_asks_no_host(built, browser):  # noqa: F811
    context = browser.new_context(viewport={"width": 390, "height": 800})
    page, requests = context.new_page(), []
    page.on("request", lambda request: requests.append(request.url))
    page.goto((built[0] / "search.html").as_uri() + "?q=watchdog")
    page.wait_for_selector("#search-results li a")
    assert any("symptoms" in link.get_attribute("href") for link in page.locator("#search-results li a").all())
    for name in ("index", "which_method", "methods", "api/config", "comparison/report"):
        page.goto((built[0] / "docs" / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name  # wide tables scroll by themselves
    context.close()
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
