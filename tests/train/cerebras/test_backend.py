"""Where a cluster's workers find this package, whatever the folder of a checkout is called."""

import subprocess
import sys
from pathlib import Path

import pytest

from crystalmix.train.cerebras.backend import PACKAGE, importable


def version_seen_from(folder: Path, place: Path) -> str:
    """Import the package as a worker does: from one folder on its path, with no site-packages."""
    command = [
        sys.executable,
        "-S",
        "-c",
        "import crystalmix as c; assert not hasattr(c, 'pytest_plugins'); "
        "print(c.__file__, c.__version__)",
    ]
    environment = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["crystalmix", "my-checkout"])
def test_workers_find_the_package_in_a_checkout_of_any_name(name: str, tmp_path: Path) -> None:
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text((PACKAGE / "__init__.py").read_text("utf-8"), "utf-8")
    folder = importable(tmp_path / "artifacts", package)
    assert (folder / "crystalmix" / "__init__.py").samefile(package / "__init__.py")
    assert version_seen_from(folder, tmp_path).startswith(f"{folder}/crystalmix/__init__.py 0.")
    assert importable(tmp_path / "artifacts", package) == folder  # once more, after a resume


def test_this_package_is_found_too(tmp_path: Path) -> None:
    assert (importable(tmp_path) / "crystalmix" / "train" / "cerebras" / "loader.py").exists()
