"""The examples run as they are."""

import os
import re
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

import crystalmix as cm
from crystalmix.mixtures.verify.verify import verify
from helpers import corpora, killed_script
from helpers.runs import recorded, small_build, undisturbed, write_run

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


def test_the_slurm_script_builds_with_ranks_one_of_which_is_killed(tmp_path: Path) -> None:
    path, tools = prepared(tmp_path)
    # srun as far as ranks are concerned: every task with its number, the same command
    (tools / "srun").write_text(
        "#!/bin/bash\nshift\n"
        'for rank in 0 1; do SLURM_PROCID=$rank SLURM_NTASKS=2 "$@" & pids+=($!); done\n'
        "for pid in ${pids[@]}; do wait $pid || exit 1; done\n"
    )
    # rank 1 is killed at its first start
    (tools / "crystalmix").write_text(
        f"#!/bin/bash\nif [ $SLURM_PROCID = 1 ] && mkdir {tmp_path}/killed 2>/dev/null; "
        f'then kill -9 $$; fi\nexec {sys.executable} -m crystalmix "$@"\n'
    )
    script = ["bash", str(EXAMPLES / "clusters" / "build.slurm"), str(path)]
    done = ran([*script, str(tmp_path), str(tmp_path / "build")], tmp_path, tools)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
    assert verify(tmp_path / "build") == []


def test_the_pods_of_the_kubernetes_job_build_together(tmp_path: Path) -> None:
    path, tools = prepared(tmp_path)
    (tools / "crystalmix").write_text(f'#!/bin/sh\nexec {sys.executable} -m crystalmix "$@"\n')
    job = YAML(typ="safe").load((EXAMPLES / "clusters" / "build-job.yaml").read_text("utf-8"))
    spec = job["spec"]
    [pod] = spec["template"]["spec"]["containers"]
    ranks = {entry["name"]: entry["value"] for entry in pod["env"]}["RANKS"]
    assert (spec["completions"], spec["parallelism"]) == (int(ranks), int(ranks))
    assert path == tmp_path / "recipe.yaml"
    (tmp_path / "raw").symlink_to(tmp_path)
    script = 'for i in 0 1; do JOB_COMPLETION_INDEX=$i RANKS=2 WORKERS=1 "$@" & p+=($!); done; '
    script += "for i in ${p[@]}; do wait $i || exit 1; done"
    done = ran(["bash", "-c", script, "pods", *pod["command"], *pod["args"]], tmp_path, tools)
    assert done.returncode == 0, done.stderr
    assert verify(tmp_path / "build") == []


def prepared(folder: Path) -> tuple[Path, Path]:
    """Write a corpus and its recipe; return the recipe, and a folder of tools on the path."""
    corpora.write_corpus(folder)
    (folder / "tools").mkdir()
    return corpora.write_recipe(folder), folder / "tools"


def ran(words: list[str], folder: Path, tools: Path) -> "subprocess.CompletedProcess[str]":
    for tool in tools.iterdir():
        tool.chmod(0o755)
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_a_trained_phase_is_taught_to_answer_in_the_template_of_crystalchat(tmp_path: Path) -> None:
    model = {"vocab_size": 440, "hidden_size": 32, "filter_size": 64}
    corpora.write_recipe(tmp_path, phases={"prose": {"batch": 6, "steps": 8}})
    build = corpora.built(tmp_path)
    uneven = {"micro_batch": 3}  # does not divide the batch of chat
    run = write_run(tmp_path / "run.yaml", model=model, runconfig=uneven)
    cm.train(build, run, out=tmp_path / "run", phases=["prose"], stop=3)
    words = [build, run, tmp_path / "run", "prose", tmp_path / "chat"]
    command = [sys.executable, EXAMPLES / "crystalchat_mini.py", *words]
    done = subprocess.run(
        list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *answers, last = done.stdout.splitlines()
    assert len(answers) == 9
    right = int(last.split()[0])
    assert right >= 7, done.stdout
