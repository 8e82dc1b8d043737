"""
How Sphinx makes a site of these pages: `make docs`. The pages are written for GitHub; here are only the order in which
the site shows them, and what becomes of a link to a file of the repository, and of a docstring in Hugging Face style.
"""

import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx


ROOT = Path(__file__).parent.parent
# The sidebar: what one wants to do, in the order in which a newcomer meets it; then what is looked up; then the
# evidence. A page that this tree does not have is left out.
NAVIGATION = {
    "Begin": {
        "First run": "docs/first_run",
        "My own data": "docs/data",
        "Which method": "docs/which_method",
        "From GRPO, verl and others": "docs/coming_from",
    },
    "Train": {
        "Several teachers": "docs/several_teachers",
        "Self-distillation": "docs/self_distillation",
        "Tools and images": "docs/tools_and_images",
        "Recipes": "docs/recipes",
        "Plan: memory and time": "docs/plan",
        "8 GPUs": "docs/eight_gpus",
        "Several nodes": "docs/several_nodes",
        "Rollouts by vLLM": "docs/vllm",
    },
    "Look": {
        "When it goes wrong": "docs/symptoms",
        "The page of a run": "docs/inspect",
        "Is the student better?": "docs/evaluate",
        "Benchmarks": "docs/benchmarks",
    },
    "Extend": {"Add a method": "docs/add_a_method", "Contributing": "CONTRIBUTING", "README": "README"},
    "Look up": {
        "Methods": "docs/methods",
        "Teachers": "docs/teachers",
        "GRPO's options": "docs/grpo_options",
        "Metrics": "docs/metrics",
        "Records of rollouts": "docs/records",
        "Keys of results.json": "docs/results_schema",
        "What fits where": "docs/hardware",
        "Examples": "examples/README",
        "Example: the real pair": "examples/real_pair/README",
        "Glossary": "docs/glossary",
    },
    "Python": {
        "Trainer": "docs/api/trainer",
        "Configuration": "docs/api/config",
        "Pipeline": "docs/api/pipeline",
        "Recipes of methods": "docs/api/methods",
        "Stages": "docs/api/stages",
    },
    "Evidence": {
        "Results, and what was not run": "docs/results",
        "What is exact": "docs/exact",
        "Comparison of methods": "docs/comparison/README",
        "Comparison: all numbers": "docs/comparison/report",
        "A real pair": "docs/real_pair/README",
        "A real language model": "docs/language_model/README",
        "Two teachers": "docs/two_teachers/README",
        "Throughput": "docs/throughput",
        "Throughput: all numbers": "docs/throughput/report",
        "Throughput with smaller tiles": "docs/throughput/tiles/report",
        "Statistics of evaluation": "docs/evaluate_statistics",
        "The paper's run, planned": "docs/paper_run",
        "Internet scale, on paper": "docs/internet_scale",
        "Plan against measurements": "docs/plan_measured",
        "One GPU, ten minutes": "docs/gpu",
        "One GPU: report": "docs/gpu/report",
        "One GPU: the same on a CPU": "docs/gpu/cpu_tiny",
        "What the tests notice": "docs/mutants",
        "Nightly tests": "docs/nightly",
        "Decisions": "docs/decisions",
        "Changelog": "CHANGELOG",
    },
}
# These files are shown as pages when a page links to them; any other file is copied, and the link downloads it.
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".sh": "bash", ".sbatch": "bash", ".txt": "text"}
SHOWN: set[Path] = set()

project = "fire_opd_trl"
html_title = "fire_opd_trl"
root_doc = "docs/index"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.linkcode", "sphinx.ext.napoleon", "sphinx_copybutton"]
include_patterns = ["*.md", "docs/**.md", "examples/**.md"]  # relative to the top folder, which is Sphinx's source
exclude_patterns = [".*", "outputs", "site", "build", "dist", "**/node_modules"]
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
myst_heading_anchors = 4  # the anchors that GitHub gives headings
myst_enable_extensions = ["html_image"]
highlight_language = "text"
add_module_names = False
smartquotes = False  # in a help such as '{"math": "org/math"}' they are code
default_role = "py:obj"  # `name` in a docstring: a link if the reference has the name, code if not
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say the types
napoleon_google_docstring = True
napoleon_numpy_docstring = False


def add_navigation(app: Sphinx, page: str, source: list[str]) -> None:
    """Sphinx calls this when it reads a page. The home page gets the sidebar's lists behind its text."""
    if page == root_doc:
        for caption, pages in NAVIGATION.items():
            there = "\n".join(f"{name} </{to}>" for name, to in pages.items() if to in app.project.docnames)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:titlesonly:\n:caption: {caption}\n\n{there}\n```\n"


def shown(path: Path) -> bool:
    return path.is_dir() and path.name != "__pycache__" or path.suffix in LANGUAGES


def page_of(path: Path) -> str:
    """The page that shows a file or a folder of the repository. It is made when all pages have been written."""
    SHOWN.update([path], [child for child in path.rglob("*") if shown(child)] if path.is_dir() else [])
    return f"source/{path.relative_to(ROOT).as_posix()}"


def show_linked_files(app: Sphinx, tree: nodes.document) -> None:
    """Sphinx calls this when it has read a page: links to source files and folders lead to pages that show them."""
    page = app.env.current_document.docname
    for link in [*tree.findall(addnodes.download_reference), *tree.findall(addnodes.pending_xref)]:
        path = (ROOT / page).parent.joinpath(link["reftarget"].split("#")[0]).resolve()
        if link.get("reftype") in ("myst", None) and path.exists() and shown(path):
            uri = app.builder.get_relative_uri(page, page_of(path))
            link.replace_self(nodes.reference("", "", *link.children, internal=True, refuri=uri))


def pages_of_files(app: Sphinx) -> Iterator[tuple[str, dict[str, str], str]]:
    """Sphinx calls this when all pages are written, for further ones: the files and folders that they link to."""
    for path in sorted(SHOWN):
        name = path.relative_to(ROOT).as_posix()
        if path.is_dir():
            inside = [child for child in sorted(SHOWN) if child.parent == path]
            links = (f'<li><a href="{path.name}/{child.name}.html">{child.name}</a></li>' for child in inside)
            body = f"<ul>{''.join(links)}</ul>"
        else:
            body = app.builder.highlighter.highlight_block(path.read_text(), LANGUAGES[path.suffix], lineanchors="L")
        yield f"source/{name}", {"title": name, "body": f"<h1>{name}</h1>{body}"}, "page.html"


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """Sphinx asks where the source of a name of the reference is: on a page as above, seen from docs/api."""
    thing = inspect.unwrap(attrgetter(info["fullname"])(importlib.import_module(info["module"])))
    if not callable(thing):
        return None  # a value or a property
    file, (_, line) = Path(inspect.getfile(thing)), inspect.getsourcelines(thing)
    return f"../../{page_of(file)}.html#L-{line}" if file.is_relative_to(ROOT) else None


def code_block(fenced: re.Match) -> str:
    return f".. code-block:: {fenced[2]}\n\n" + textwrap.indent(fenced[3], "    ")


def as_restructured_text(app, what: str, name: str, thing, options, lines: list[str]) -> None:
    """Sphinx calls this for each docstring. Its links, fenced code and indented equations are Markdown's."""
    text = re.sub(r"\[`~?([^`]+)`\]", r"`\1`", "\n".join(lines))
    text = re.sub(r"^( *)```(\w+)\n(.*?)^ *```$", code_block, text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"([^:\n]:)\n\n(?=    )", r"\1:\n\n", text)
    lines[:] = re.sub(r" \|(\w+)\| ", r" \|\1\| ", text).split("\n")


def write_entrance(app: Sphinx, error: Exception | None) -> None:
    """Sphinx calls this at the end. The top of the site leads to the home page, which lies beside the other pages."""
    target = f"{root_doc}.html"
    page = f'<!doctype html><meta http-equiv="refresh" content="0; url={target}"><a href="{target}">{project}</a>\n'
    (Path(app.outdir) / "index.html").write_text(page)


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_navigation)
    app.connect("doctree-read", show_linked_files, priority=100)  # before Sphinx collects what it will copy
    app.connect("html-collect-pages", pages_of_files)
    app.connect("autodoc-process-docstring", as_restructured_text, priority=100)  # before napoleon reads its sections
    app.connect("build-finished", write_entrance)
