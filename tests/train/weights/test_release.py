"""Releases: every kept checkpoint, proven to a stranger who has neither the run nor its data."""

import inspect
import subprocess
from functools import lru_cache
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

import crystalmix as cm
from crystalmix.prep.runtime.atomic_files import file_sha256
from crystalmix.prep.runtime.errors import InputError
from crystalmix.train.record import run_folder
from crystalmix.train.record.run_folder import PhaseFolder
from crystalmix.train.weights import hub_push
from crystalmix.train.weights import release as releasing
from helpers.corpora import crystalmix
from helpers.runs import PHASES, manifest, scratch, small_build, undisturbed

NEWEST = "code-step-00000010"


@lru_cache
def released() -> Path:
    out = scratch() / "release"
    cm.release(undisturbed(), out)
    return out


def copied(tmp_path: Path) -> Path:
    return Path(copytree(released(), tmp_path / "release"))


def faults(path: Path) -> list[str]:
    return list(cm.verify(path).faults)


def summed(path: Path) -> None:
    """Write the checksums anew, as one who changed a release would."""
    names = releasing._names(path)
    lines = [f"{file_sha256(path / name)}  {name}\n" for name in names]
    (path / releasing.SUMS).write_text("".join(lines), "utf-8")


def test_every_kept_checkpoint_is_a_revision_with_its_place_in_the_data() -> None:
    revisions = releasing.read(released()).revisions
    kept = {
        f"{phase}-{path.name}": (phase, run_folder.step_of(path))
        for phase in PHASES
        for path in run_folder.checkpoints(PhaseFolder(undisturbed() / phase).checkpoints)
    }
    assert {revision.name for revision in revisions} == kept.keys()
    before = 0
    for phase in PHASES:
        mine = [revision for revision in revisions if revision.phase == phase]
        for revision in mine:
            assert (revision.phase, revision.step) == kept[revision.name]
            assert revision.position == revision.step * manifest(phase).batch
            assert revision.tokens == before + revision.position * manifest(phase).msl
            folder = released() / "revisions" / revision.name
            assert (folder / "model.safetensors").exists()
            assert (folder / "tokenizer.json").exists()
        before = mine[-1].tokens
    card = (released() / "README.md").read_text("utf-8")
    assert f"| {NEWEST} | code | 10 | {before} | 40 |" in card
    data = (released() / "build" / "README.md").read_text("utf-8")
    assert data == cm.card(small_build(), "dataset-card").text
    assert "## Sources" in data


def test_a_stranger_verifies_it_with_one_command() -> None:
    result = crystalmix("verify", released())
    assert result.exit_code == 0, result.stdout
    assert "a release of 6 revisions" in result.stdout
    sums = subprocess.run(
        ["sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS"], cwd=released(), check=False
    )
    assert sums.returncode == 0


def test_a_changed_a_missing_and_an_added_file_are_found(tmp_path: Path) -> None:
    path = copied(tmp_path)
    (path / "README.md").write_text("better", "utf-8")
    (path / "build" / "tokenizer.json").unlink()
    (path / "more.txt").write_text("", "utf-8")
    found = faults(path)
    assert [line.split(": ")[1][:12] for line in found] == [
        "is missing; ",
        "is not of th",
        "its bytes ch",
    ]


def test_weights_of_another_checkpoint_are_found_though_all_sums_are_right(tmp_path: Path) -> None:
    path = copied(tmp_path)
    file = path / "revisions" / NEWEST / "model.safetensors"
    state = load_file(file)
    state["transformer.wte.weight"][3, 2] += 1e-4
    save_file(state, file, metadata={"format": "pt"})
    summed(path)
    [fault] = faults(path)
    assert f"{NEWEST}: its weights are not those of step 10" in fault


def test_a_ledger_that_is_not_the_plans_is_found_though_all_sums_are_right(tmp_path: Path) -> None:
    path = copied(tmp_path)
    segments = sorted((path / "run" / "code" / "ledger").glob("steps-*.parquet"))
    segments[-1].unlink()
    summed(path)
    assert any("steps-" in line and "missing" in line for line in faults(path))


def test_bfloat16_is_half_as_large_and_sound(tmp_path: Path) -> None:
    cm.release(undisturbed(), tmp_path / "half", dtype="bfloat16")
    state = load_file(tmp_path / "half" / "revisions" / NEWEST / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert faults(tmp_path / "half") == []


def test_a_folder_that_holds_something_and_a_run_of_a_caller_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        cm.release(undisturbed(), released())
    build = cm.open(small_build())
    assert isinstance(build, cm.Build)
    with cm.Ledger(tmp_path / "run", build.phases["code"]) as ledger:
        for batch in build.phases["code"].batches():
            ledger.record(batch.step, cm.fed(batch))
        ledger.seal()
    with pytest.raises(InputError, match="has no weights of ours; release a run that `train`"):
        cm.release(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Hub:
    """Takes calls as the real client would, and keeps them."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any, **more: Any) -> None:
            bound = inspect.signature(getattr(HfApi, name)).bind(None, *given, **more)
            self.calls.append((name, {k: v for k, v in bound.arguments.items() if k != "self"}))

        return call


def test_a_push_sends_the_release_and_a_branch_for_each_revision() -> None:
    hub, release = Hub(), releasing.read(released())
    hub_push.push(release, "me/crystal", hub)
    assert hub.calls[0] == (
        "create_repo",
        {"repo_id": "me/crystal", "private": True, "exist_ok": True},
    )
    sent = [more for name, more in hub.calls if name == "upload_folder"]
    branches = ["main", *(revision.name for revision in release.revisions)]
    assert [each["revision"] for each in sent] == branches
    assert sent[0]["folder_path"] == released()
    assert sent[-1]["folder_path"] == released() / "revisions" / NEWEST
    made = [more["branch"] for name, more in hub.calls if name == "create_branch"]
    assert made == branches[1:]


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing() -> None:
    result = crystalmix("push", released(), "--repo", "me/crystal", "--dry-run")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("me/crystal@main: 113 files, Release ")
    assert lines[-1] == f"me/crystal@{NEWEST}: 10 files, code step 10, 9728 tokens"
