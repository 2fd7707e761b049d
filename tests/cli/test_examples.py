"""The examples run as they are."""

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_first_mixture_is_built_verified_and_read(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "first_mixture.py"), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sound: every file, count, digest and order agrees: 1 phase ")
    assert re.search(r"^\d+ steps of 4 rows of 128 tokens$", done.stdout, re.MULTILINE)
