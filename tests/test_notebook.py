"""Checks that the notebook runs and is stored with outputs; ``python tests/test_notebook.py`` renews them."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
PATH = ROOT / "experiments" / "quickstart.ipynb"


def read():
    return nbformat.read(PATH, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute():
    """Returns the notebook with new outputs; its kernel is the Python of this process."""
    notebook = read()
    resources = {"metadata": {"path": str(PATH.parent)}}
    client = NotebookClient(notebook, timeout=300, resources=resources, record_timing=False, coalesce_streams=True)
    client.execute()
    return notebook


def kinds(cell):
    """Returns the types of the outputs of a cell: streams by name, results and displays by media type."""
    return {
        (output.output_type, kind)
        for output in cell.outputs
        for kind in ([output.name] if output.output_type == "stream" else output.data)
    }


def texts(cell):
    """Returns the source and the outputs of a cell as text, without pictures."""
    yield cell.source
    for output in cell.get("outputs", []):
        texts = [output.text] if output.output_type == "stream" else output.data.values()
        yield from (re.sub('base64,[^"]*', "", text) for text in texts if not re.fullmatch(r"[\w+/=\n]{200,}", text))


def test_the_notebook_is_stored_as_it_ran_from_top_to_bottom():
    cells = code_cells(read())
    assert [cell.execution_count for cell in cells] == list(range(1, 11))
    assert [cell.source for cell in cells if not cell.outputs] == []
    assert "error" not in {output.output_type for cell in cells for output in cell.outputs}
    assert [cell.metadata for cell in cells if cell.metadata] == []  # when and where it ran


@pytest.mark.parametrize(
    "pattern",
    [r"(?:^|[\s\"'(=>])(?:~?/|[A-Z]:\\)\w", r"\d{4}-\d\d-\d\d", r"\d\d:\d\d", "(?i)warning"],
    ids=["path", "date", "time", "warning"],
)
def test_the_notebook_shows_nothing_of_the_machine_it_ran_on(pattern):
    found = [text for cell in read().cells for text in texts(cell) if re.search(pattern, text, re.MULTILINE)]
    assert found == []


@pytest.mark.slow
def test_the_notebook_runs_and_gives_outputs_of_the_stored_kinds(tmp_path, monkeypatch):
    for name in ("TMPDIR", "IPYTHONDIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    before = sorted(PATH.parent.rglob("*"))
    for stored, new in zip(code_cells(read()), code_cells(execute()), strict=True):
        assert kinds(stored) <= kinds(new), stored.source  # ipywidgets adds progress bars
    assert sorted(PATH.parent.rglob("*")) == before
    assert list((tmp_path / "TMPDIR").iterdir()) == []


if __name__ == "__main__":
    nbformat.write(execute(), PATH)
