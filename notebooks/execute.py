"""Execute notebooks in place, at full size, and keep of them what is no matter of machine or time.

python notebooks/execute.py             # all of them
python notebooks/execute.py 01 04       # those whose names start so
"""

import os
import resource
import sys
import tempfile
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
QUIET = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore:IProgress not found"}  # tqdm.auto where ipywidgets is not


def executed(path: Path, **environment: str) -> NotebookNode:
    """The notebook with fresh outputs, of a kernel of this interpreter that starts in an empty folder.

    Args:
        environment: variables to set for it.

    Raises: nbclient.exceptions.CellExecutionError.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        kernel = AsyncKernelManager(
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),  # none but this interpreter's own
            connection_file=f"{folder}/kernel.json",
            transport="ipc",  # no ports that two could pick at once
            ip=f"{folder}/kernel",
        )
        client = NotebookClient(notebook, km=kernel, timeout=600, record_timing=False)
        variables = {**os.environ, **QUIET, "IPYTHONDIR": f"{folder}/ipython", **environment}
        client.execute(env=variables, cwd=folder, cleanup_kc=True)
    return bare(notebook)


def bare(notebook: NotebookNode) -> NotebookNode:
    """Without what a machine adds; cells are numbered."""
    notebook.metadata = NotebookNode(kernelspec=KERNEL, language_info={"name": "python"})
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = {}
    return notebook


def processor_seconds() -> float:
    """What kernels that have ended took of a processor, whatever else was running."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(prefixes: list[str]) -> None:
    """Execute and write those whose names start with one of the prefixes, or all."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        if path.name.startswith(tuple(prefixes) or ""):
            before = processor_seconds()
            nbformat.write(executed(path), path)
            seconds, size = processor_seconds() - before, path.stat().st_size / 1000
            print(f"{path.name}: {seconds:.0f} s of a processor, {size:.0f} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
