"""Execute notebooks: `python tests/executing.py SOURCE.py OUT.ipynb`, from the project's folder.

The committed notebooks were made so, with CRYSTALMIX_* naming an ablation of the `dev` corpus:
`for f in notebooks/0*.py; do python tests/executing.py $f ${f%.py}.ipynb; done`.
"""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SECONDS = 600


def read(source: Path) -> Any:
    """Return a py:percent source as a notebook."""
    import jupytext

    return jupytext.read(source)


def execute(source: Path, out: Path) -> None:
    """Execute a source from top to bottom and write the notebook with its outputs."""
    import nbformat
    from nbclient import NotebookClient

    notebook = read(source)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # those of jupytext are random
    resources = {"metadata": {"path": str(ROOT)}}
    NotebookClient(notebook, timeout=SECONDS, resources=resources).execute()
    for cell in notebook.cells:
        cell["metadata"].pop("execution", None)  # times
    notebook["metadata"].pop("language_info", None)
    nbformat.write(notebook, out)


if __name__ == "__main__":
    execute(Path(sys.argv[1]), Path(sys.argv[2]))
