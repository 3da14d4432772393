"""The documentation: pages in Markdown, the reference from docstrings. Nothing is executed, nothing is fetched."""

import re
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import ppl_vae

HERE = Path(__file__).parent
log = logging.getLogger(__name__)

project = "ppl_vae"
copyright = "the ppl_vae authors"
version = release = ppl_vae.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"ppl_vae {release}"
html_show_copyright = False
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are committed with what they printed

autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
maximum_signature_line_length = 100
default_role = "code"
napoleon_use_ivar = True


def copy_notebooks() -> None:
    """Sphinx reads one folder, and notebooks lie beside it."""
    for old in HERE.glob("notebooks/*.ipynb"):
        old.unlink()
    for notebook in HERE.parent.glob("notebooks/*.ipynb"):
        shutil.copy2(notebook, HERE / "notebooks")


def as_rst(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text, with code in single backticks: take what reStructuredText would read into it."""
    text = "\n".join(lines)
    text = re.sub(r"^(Returns|Raises): ((?:.+\n?)+)", _on_one_line, text, flags=re.M)
    text = re.sub(r": ([A-Za-z]\.)$", r": \\\1", text, flags=re.M)  # a letter and a dot are no list
    quiet, verbatim = [], False
    for line in text.split("\n"):
        verbatim = line.lstrip().startswith(">>>") or (verbatim and bool(line.strip()))
        quiet.append(line if verbatim else re.sub(r"`[^`]*`|[|*_]", _escaped, line))
    lines[:] = quiet


def _on_one_line(found: re.Match) -> str:
    head = ":returns:" if found[1] == "Returns" else "Raises:"
    return f"{head} {' '.join(found[2].split())}\n"


def _escaped(found: re.Match) -> str:
    return f"`{found[0]}`" if found[0].startswith("`") else f"\\{found[0]}"


def skip(app: Sphinx, what: str, name: str, thing: Any, skips: bool, options: Any) -> bool | None:
    """A field of a tuple is described where its class is."""
    return True if type(thing).__name__ == "_tuplegetter" else None


class Public(SphinxDirective):
    """The public names that live in one folder, or module, of the package, from `ppl_vae.__all__`."""

    required_arguments = 1
    optional_arguments = 100

    def run(self) -> list[nodes.Node]:
        names = [name for home in self.arguments for name, own in ppl_vae._PUBLIC.items() if own == home]
        return self.parse_text_to_nodes("\n".join(map(_entry, names)))


def _entry(name: str) -> str:
    kind = "autoclass" if isinstance(getattr(ppl_vae, name), type) else "autofunction"
    members = "   :members:\n" if kind == "autoclass" else ""
    return f"```{{eval-rst}}\n.. {kind}:: ppl_vae.{name}\n{members}```\n"


def formula(writer: Any, node: nodes.Element) -> None:
    """MathML: browsers draw it, without scripts and without a network."""
    block = isinstance(node, nodes.math_block)
    drawn = convert(node.astext().strip(), display="block" if block else "inline")
    if unknown := re.search(r"\\[A-Za-z]+", re.sub(r"<[^>]*>", "", drawn)):
        log.warning("formula: got %s, expected a command of LaTeX that latex2mathml knows", unknown[0], location=node)
    drawn = drawn.replace("<mi>log</mi>", '<mi>log</mi><mspace width="0.17em" />')
    writer.body.append(f'<div class="math">{drawn}</div>' if block else drawn)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
    copy_notebooks()
    app.add_directive("public", Public)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", as_rst, priority=400)  # before napoleon
