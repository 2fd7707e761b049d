"""What is installed: one package, `crystalmix`, which no file of a user can shadow."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = ("prep", "mixtures", "train")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
BUILD = "from setuptools import build_meta as b; import sys; print(b.{}(sys.argv[1]))"
# What a user may call their own files, and what each does when it is run.
SHADOWS = ("train", "prep", "cli", "mixtures", "demo", "notebooks", "tests")


def packages() -> list[str]:
    """Name the folders that are packages."""
    inits = [path for floor in FLOORS for path in (ROOT / floor).rglob("__init__.py")]
    names = [".".join(path.parent.relative_to(ROOT).parts) for path in inits]
    return sorted(["crystalmix", *(f"crystalmix.{name}" for name in names)])


def data_files() -> set[str]:
    """Name the files beside modules, as they lie in the installed package."""
    files = [path for floor in FLOORS for path in (ROOT / floor).rglob("*") if path.is_file()]
    kept = [path for path in files if path.suffix not in {".py", ".pyc"}]
    return {f"crystalmix/{path.relative_to(ROOT).as_posix()}" for path in kept}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Build the source distribution, and from what it holds the wheel."""
    place = tmp_path_factory.mktemp("distributions")
    unwanted = (".git", ".venv*", ".env-*", "__pycache__", "*.egg-info", "demo", "dist", "build")
    copytree(ROOT, place / "tree", ignore=_at_top(*unwanted), symlinks=True)
    sdist = place / _built("build_sdist", place / "tree", place)
    with tarfile.open(sdist) as archive:
        archive.extractall(place / "unpacked", filter="data")
    [unpacked] = (place / "unpacked").iterdir()
    return sdist, place / _built("build_wheel", unpacked, place)


def _at_top(*patterns: str):  # noqa: ANN202  as copytree wants it
    everywhere, top = ignore_patterns("__pycache__"), ignore_patterns(*patterns)
    return lambda folder, names: (top if Path(folder) == ROOT else everywhere)(folder, names)


def _built(step: str, tree: Path, out: Path) -> str:
    command = [sys.executable, "-c", BUILD.format(step), str(out)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_pyproject_lists_every_package_that_there_is() -> None:
    assert sorted(SETTINGS["tool"]["setuptools"]["packages"]) == packages()


def test_the_wheel_holds_one_package_whole(distributions: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(distributions[1]) as wheel:
        names = set(wheel.namelist())
    assert {name.split("/")[0].split("-")[0] for name in names} == {"crystalmix"}
    modules = {f"crystalmix/{path.relative_to(ROOT).as_posix()}" for path in sources()}
    inside = {name for name in names if name.startswith("crystalmix/")}
    assert inside == modules | data_files() | {"crystalmix/py.typed"}
    assert "crystalmix/train/presets/mini.yaml" in inside


def sources() -> list[Path]:
    """List the modules of the package."""
    return [
        *ROOT.glob("*.py"),
        *(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py")),
    ]


def test_the_source_distribution_holds_what_the_gate_needs(
    distributions: tuple[Path, Path],
) -> None:
    with tarfile.open(distributions[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"Makefile", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", ".ci/run"}
    needed |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")}
    needed |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert needed - names == set()


def test_the_extra_of_cerebras_is_for_python_3_11_alone() -> None:
    project = SETTINGS["project"]
    assert project["requires-python"] == ">=3.11,<3.15"
    [cerebras] = [line for line in project["optional-dependencies"]["csx"] if "cerebras" in line]
    assert "python_version == '3.11'" in cerebras


@pytest.mark.parametrize(
    "command",
    [
        [str(Path(sys.executable).with_name("crystalmix")), "--version"],
        [sys.executable, "-m", "crystalmix", "--version"],
        [sys.executable, "-c", "import crystalmix; print(crystalmix.__version__)"],
        [sys.executable, "-c", "import crystalmix.train.trainer.trainer, crystalmix.cli"],
        [sys.executable, "-m", "crystalmix", "plan", "crystalcoder"],
    ],
    ids=["script", "module", "import", "import of everything", "a command"],
)
def test_a_user_s_own_files_are_not_run(command: list[str], tmp_path: Path) -> None:
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the user file was run')\n", "utf-8")
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ".", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "the user file was run" not in done.stdout
