"""The documentation: pages in Markdown, the reference from docstrings. Nothing is executed, nothing is fetched."""

import re
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import ppl_vae

HERE = Path(__file__).parent

project = "ppl_vae"
copyright = "the ppl_vae authors"
version = release = ppl_vae.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"ppl_vae {release}"
html_show_copyright = False

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
    text = re.sub(
        r"^Returns: ((?:.+\n?)+)", lambda found: ":returns: " + found[1].replace("\n", " ") + "\n", text, flags=re.M
    )
    quiet, verbatim = [], False
    for line in text.split("\n"):
        verbatim = line.lstrip().startswith(">>>") or (verbatim and bool(line.strip()))
        quiet.append(line if verbatim else re.sub(r"`[^`]*`|[|*_]", _escaped, line))
    lines[:] = quiet


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
        homes = self.arguments
        names = [name for name, home in ppl_vae._PUBLIC.items() if home in homes]
        return self.parse_text_to_nodes("\n".join(map(_entry, names)))


def _entry(name: str) -> str:
    kind = "autoclass" if isinstance(getattr(ppl_vae, name), type) else "autofunction"
    members = "   :members:\n" if kind == "autoclass" else ""
    return f"```{{eval-rst}}\n.. {kind}:: ppl_vae.{name}\n{members}```\n"


def setup(app: Sphinx) -> None:
    copy_notebooks()
    app.add_directive("public", Public)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", as_rst, priority=400)  # before napoleon
