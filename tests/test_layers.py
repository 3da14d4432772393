"""The house keeps its order: a module imports only from its own folder or one above it, and no imports go in a circle.

The checker is a few functions over a folder of sources, so that it is itself tested on small trees with planted faults.
Every import counts, at module level, in a function, or under `TYPE_CHECKING`.
"""

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ppl_vae"
ROOT = (
    "errors",
    "options",
    "files",
    "pairs",
    "versions",
    "plugins",
    "progress",
)  # root-level modules that know no model: the top of the order
FOLDERS = ("data", "model", "infer", "criticism", "use")
LAST = ("testing", "__main__")  # root-level modules that may use all the others


def module_name(path: Path, package: Path) -> str:
    """The dotted name of a source file; a folder's `__init__.py` has the folder's name."""
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(path: Path, package: Path) -> set[str]:
    """The absolute dotted name of everything a source file imports, `from a import b` being `a.b`."""
    own = path.relative_to(package.parent).with_suffix("").parts
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # one dot is the folder of the file, each further dot the folder around it
            base = own[: len(own) - node.level] if node.level else ()
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{prefix}.{alias.name}" for alias in node.names}
    return names


def import_graph(package: Path) -> dict[str, set[str]]:
    """Each module of the package, its `__init__` apart, with the modules of the package that it imports."""
    paths = {module_name(path, package): path for path in sorted(package.rglob("*.py"))}

    def target(name: str) -> str | None:
        while name and name not in paths:  # the tail may be a function or a class of the module
            name = name.rpartition(".")[0]
        return name or None

    graph = {}
    for module, path in paths.items():
        if module != package.name:
            graph[module] = {found for name in imported_names(path, package) if (found := target(name))}
    return graph


def layer(module: str) -> int | None:
    """The place of a module in the order, 0 at the top; None for one that has no place."""
    _, _, inside = module.partition(".")
    first, _, rest = inside.partition(".")
    if first in FOLDERS:
        return 1 + FOLDERS.index(first)
    if rest or first not in ROOT + LAST:
        return None
    return 0 if first in ROOT else 1 + len(FOLDERS)


def layer_faults(graph: dict[str, set[str]]) -> list[str]:
    """One line for each module without a place and for each import from a lower folder (or from the package itself)."""
    faults = [f"{module} has no place in the order of folders" for module in graph if layer(module) is None]
    for module, targets in graph.items():
        for target in sorted(targets):
            above, below = layer(target), layer(module)
            if above is None or (below is not None and above > below):
                faults.append(f"{module} imports {target}")
    return faults


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """The modules along one circle of imports, or an empty list."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_modules_import_only_from_their_own_folder_or_one_above() -> None:
    graph = import_graph(PACKAGE)
    assert {f"ppl_vae.{folder}" for folder in FOLDERS} <= set(graph)  # else the check looks at the wrong place
    assert layer_faults(graph) == []


def test_imports_have_no_cycle() -> None:
    assert cycle(import_graph(PACKAGE)) == []


SOUND = {
    "__init__.py": "from house.use import cli\n",
    "errors.py": "import numpy\n",
    "data/__init__.py": "",
    "data/schema.py": "from .. import errors\nfrom house.errors import Bad\n",
    "data/datasets.py": "from . import schema\n",
    "model/__init__.py": "",
    "model/vae.py": "from ..data.schema import Schema\nimport house.errors\n",
    "use/__init__.py": "",
    "use/cli.py": "def main():\n    from house.model import vae\n",
    "testing.py": "from house.use import cli\n",
}


def plant(folder: Path, **changed: str) -> Path:
    """Write the sound tree, with some files changed (`data__schema` is data/schema.py), and return its package."""
    files = SOUND | {name.replace("__", "/") + ".py": text for name, text in changed.items()}
    for name, text in files.items():
        path = folder / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / "house"


def test_a_sound_tree_has_no_fault(tmp_path: Path) -> None:
    graph = import_graph(plant(tmp_path))
    assert graph["house.data.schema"] == {"house.errors"}
    assert graph["house.use.cli"] == {"house.model.vae"}
    assert layer_faults(graph) == [] and cycle(graph) == []


@pytest.mark.parametrize(
    "text",
    [
        "import house.model.vae\n",
        "import house.model.vae as v\n",
        "from house.model import vae\n",
        "from house.model.vae import VAE\n",
        "from ..model import vae\n",
        "from ..model.vae import VAE\n",
        "def load():\n    from house.model import vae\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.model.vae import VAE\n",
    ],
)
def test_an_import_from_a_lower_folder_is_seen(tmp_path: Path, text: str) -> None:
    graph = import_graph(plant(tmp_path, data__schema=text))
    assert layer_faults(graph) == ["house.data.schema imports house.model.vae"]


def test_a_root_module_that_imports_a_folder_is_seen(tmp_path: Path) -> None:
    graph = import_graph(plant(tmp_path, errors="from .data import schema\n"))
    assert layer_faults(graph) == ["house.errors imports house.data.schema"]


def test_an_import_of_the_package_itself_is_seen(tmp_path: Path) -> None:
    graph = import_graph(plant(tmp_path, use__cli="import house\n", data__schema="from house import fit\n"))
    assert layer_faults(graph) == ["house.data.schema imports house", "house.use.cli imports house"]


def test_a_module_without_a_place_is_seen(tmp_path: Path) -> None:
    graph = import_graph(plant(tmp_path, helpers="", misc__tools=""))
    assert layer_faults(graph) == [
        "house.helpers has no place in the order of folders",
        "house.misc.tools has no place in the order of folders",
    ]


def test_a_cycle_within_a_folder_is_seen(tmp_path: Path) -> None:
    circle = "def infer():\n    from house.data import datasets\n"  # hidden in a function
    graph = import_graph(plant(tmp_path, data__schema=circle))
    assert layer_faults(graph) == []
    assert set(cycle(graph)) == {"house.data.schema", "house.data.datasets"}
