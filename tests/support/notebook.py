"""
The notebook as it is kept: executed on the CPU from an empty folder, with its outputs and without anything of the
machine.

    python tests/support/notebook.py        # `make notebook`: keeps the outputs
"""

import base64
import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient


ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "fire_opd_quickstart.ipynb"
# One thread and no GPU, so that the outputs say the same wherever it is executed.
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "DS_ACCELERATOR": "cpu",  # else DeepSpeed warns that it found no other
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "PYTHONWARNINGS": "ignore",  # of other libraries; those of this package come through `logging`
}


def executed() -> nbformat.NotebookNode:
    """The notebook with the outputs of a run of its own; an error in a cell is raised."""
    notebook = nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=240,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute(env={**os.environ, **ENVIRONMENT})
    notebook.metadata.language_info = {"name": "python"}  # not which Python this was
    return notebook


def pictures(notebook: nbformat.NotebookNode, cell: str) -> list[bytes]:
    """The pictures that a cell shows."""
    (outputs,) = (one.outputs for one in notebook.cells if one.id == cell)
    return [base64.b64decode(output.data["image/png"]) for output in outputs if "image/png" in output.get("data", {})]


if __name__ == "__main__":
    nbformat.write(executed(), NOTEBOOK)
