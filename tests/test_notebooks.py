"""The notebooks: clean as they are stored, and executed from the first cell to the last in a kernel of their own."""

import os
import pathlib
import re
import shutil
import sys
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

NOTEBOOKS = pathlib.Path(__file__).parent.parent / "notebooks"
FIGURES = {"quickstart": 4, "convert_and_check": 0, "finetune": 3, "train_on_tpu": 2, "detect_and_segment": 3}
LARGEST_OUTPUT = 1_000_000  # bytes of a notebook with its outputs, beyond those without

# Stands in for TensorFlow: whoever imports it, in the kernel or in a process of its own, leaves a file behind.
TENSORFLOW = """
import pathlib
pathlib.Path(__file__).with_name("imported").touch()
raise ImportError("the notebooks do without TensorFlow")
"""

every_notebook = pytest.mark.parametrize("name", FIGURES)


def read(name: str) -> nbformat.NotebookNode:
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    return notebook


def code_cells(notebook: nbformat.NotebookNode) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_is_tested() -> None:
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == sorted(FIGURES)


@every_notebook
def test_is_stored_clean(name: str) -> None:
    notebook = read(name)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None


@every_notebook
def test_opens_with_what_it_needs_asserts_a_number_and_ends_with_where_to_go(name: str) -> None:
    notebook = read(name)
    assert notebook.cells[0].source.startswith("# ")
    assert "**Needs:**" in notebook.cells[0].source
    assert notebook.cells[-1].source.startswith("## Where to go next")
    assert re.search(r"^\s*assert .*\d", "\n".join(cell.source for cell in code_cells(notebook)), re.MULTILINE)


@pytest.mark.slow
@every_notebook
def test_runs(name: str, tmp_path: pathlib.Path) -> None:
    for weights in NOTEBOOKS.glob("*.safetensors"):
        shutil.copy(weights, tmp_path)
    executed, without_outputs = read(name), len(nbformat.writes(read(name)))
    execute(executed, tmp_path)

    outputs = [output for cell in code_cells(executed) for output in cell.outputs]
    assert all(cell.execution_count for cell in code_cells(executed))
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if "Warning:" in output.get("text", "")]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == FIGURES[name]
    assert len(nbformat.writes(executed)) - without_outputs < LARGEST_OUTPUT
    assert not (tmp_path / "tensorflow" / "imported").exists()


@pytest.mark.parametrize("name", ["quickstart", "detect_and_segment"])
def test_says_what_to_do_without_weights(name: str, tmp_path: pathlib.Path) -> None:
    notebook = read(name)
    (cell,) = (cell for cell in code_cells(notebook) if "FileNotFoundError" in cell.source)
    notebook.cells = [cell]
    cell.metadata["tags"] = ["raises-exception"]
    execute(notebook, tmp_path)
    (output,) = cell.outputs
    assert output.ename == "FileNotFoundError"
    assert "upload it" in output.evalue


def execute(notebook: nbformat.NotebookNode, folder: pathlib.Path) -> None:
    """Run all cells in a folder, by the interpreter of these tests; raises what a cell raises."""
    (folder / "tensorflow").mkdir()
    (folder / "tensorflow" / "__init__.py").write_text(TENSORFLOW)
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "TFDS_DATA_DIR": str(folder / "tensorflow_datasets"),
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    # As users run them: conftest.py gives the tests eight devices and code that is not optimised. MPLBACKEND would
    # keep the figures out of the notebook.
    for variable in ("XLA_FLAGS", "MPLBACKEND"):
        environment.pop(variable, None)
    # No folder of kernels is searched, so that "python3" is this interpreter whatever is installed for the user.
    kernels = KernelSpecManager(kernel_dirs=[])
    assert kernels.get_kernel_spec("python3").argv[0] == sys.executable
    manager = AsyncKernelManager(kernel_spec_manager=kernels, connection_file=str(folder / "connection.json"))
    client = NotebookClient(notebook, km=manager, timeout=600, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment, cleanup_kc=True)  # cleanup_kc: the kernel and its sockets end with it
