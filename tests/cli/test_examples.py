"""The examples run as they are."""

import re
import subprocess
import sys
from pathlib import Path

import crystalmix as cm
from helpers import killed_script
from helpers.runs import recorded, small_build, undisturbed

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_first_mixture_is_built_verified_and_read(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "first_mixture.py"), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sound: every file, count, digest and order agrees: 1 phase ")
    assert re.search(r"^\d+ steps of 4 rows of 128 tokens$", done.stdout, re.MULTILINE)


def test_a_loop_of_ones_own_is_killed_goes_on_and_is_proven(tmp_path: Path) -> None:
    words = [str(EXAMPLES / "trainers" / "own_loop.py"), str(small_build()), "code"]
    dying = [killed_script.__file__, "6", *words]
    codes = [
        subprocess.run([sys.executable, *each, str(tmp_path / out)], check=False).returncode
        for each, out in ((dying, "killed"), (words, "killed"), (words, "whole"))
    ]
    assert codes == [-9, 0, 0]
    runs = [tmp_path / out / "run" for out in ("killed", "whole")]
    assert recorded(runs[0], "code") == recorded(runs[1], "code")  # rows, digests, losses
    assert recorded(runs[0], "code")[1] == recorded(undisturbed(), "code")[1]
    assert cm.verify(small_build(), run=runs[0]).faults == ()
