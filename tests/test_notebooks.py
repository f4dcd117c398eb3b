"""The notebooks run from the first cell to the last, draw their pictures, and are kept without outputs."""

from __future__ import annotations

import base64
import io
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


class ThisInterpreter(KernelSpecManager):
    """The kernel of the interpreter that runs the tests; nothing is looked for on the machine, nothing is installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        arguments = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=arguments, display_name=kernel_name, language="python")


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "notebooks" / name, as_version=4)


def execute(name: str, folder: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs, executed in ``folder``."""
    notebook = read(name)
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:  # short: sockets lie in it
        for variable in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
            patch.setenv(variable, scratch)
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        connection = str(Path(scratch) / "kernel.json")
        manager = AsyncKernelManager(kernel_spec_manager=ThisInterpreter(), transport="ipc", connection_file=connection)
        client = NotebookClient(notebook, km=manager, timeout=300, resources={"metadata": {"path": str(folder)}})
        client.execute(cleanup_kc=True)  # else a kernel of one's own manager would run on
    return notebook


def pictures(notebook: nbformat.NotebookNode) -> list[Image.Image]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [
        Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"])))
        for output in outputs
        if "image/png" in output.get("data", {})
    ]


def printed(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def test_there_are_two() -> None:
    assert [path.name for path in NOTEBOOKS] == ["alignzeg.ipynb", "epsilon.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_are_kept_without_outputs(path: Path) -> None:
    notebook = read(path.name)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, f"strip the outputs of {path.name}: {cell.source}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_without_a_checkpoint_they_say_how_to_get_it(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    first = next(cell.source for cell in read(path.name).cells if cell.cell_type == "code")
    with pytest.raises(FileNotFoundError, match=r"output/demo/.*model_final\.pth is not there yet: run `make demo`"):
        exec(first.partition("%matplotlib")[0], {})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    for cell in read(path.name).cells:
        for target in cell.source.split("](")[1:] if cell.cell_type == "markdown" else []:
            assert (ROOT / "notebooks" / target.partition(")")[0]).is_file(), target


@pytest.mark.slow
def test_alignzeg(user_folder: Path) -> None:
    notebook = execute("alignzeg.ipynb", user_folder)
    drawn, text = pictures(notebook), printed(notebook)
    assert len(drawn) >= 7 and all(min(picture.size) > 200 for picture in drawn)
    assert "| my_world        | GZS3" in text and "| my_world_unseen | ZS3" in text
    assert "grounds_train: 6 images, protocol supervised, ('grass', 'sand', 'bricks')" in text


@pytest.mark.slow
def test_epsilon(user_folder: Path) -> None:
    notebook = execute("epsilon.ipynb", user_folder)
    drawn, text = pictures(notebook), printed(notebook)
    assert len(drawn) == 5 and all(min(picture.size) > 200 for picture in drawn)
    assert "| my_images  | ZSL" in text and "| my_images  | GZSL" in text
    assert "photos_train: protocol supervised, labels ('red', 'green', 'yellow', 'purple')" in text
