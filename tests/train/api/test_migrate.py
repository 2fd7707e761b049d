"""`crystalmix migrate`: manifests of the newest schema, the same rows, a build that stays sound."""

import shutil
from pathlib import Path

from click.testing import CliRunner

import crystalmix as cm
from crystalmix.cli import main
from helpers.runs import small_build


def test_a_migrated_build_is_sound_and_keeps_its_rows(tmp_path: Path) -> None:
    shutil.copytree(small_build(), tmp_path / "build", symlinks=True)
    before = {n: p.manifest for n, p in cm.open(small_build()).phases.items()}
    done = CliRunner().invoke(main, ["migrate", str(tmp_path / "build")])
    assert done.exit_code == 0, done.output
    after = {n: p.manifest for n, p in cm.open(tmp_path / "build").phases.items()}
    assert {m.schema for m in after.values()} == {4}
    for name, manifest in after.items():
        assert manifest.migrated == before[name].digest
        assert manifest.step(1).row.tolist() == before[name].step(1).row.tolist()
    assert CliRunner().invoke(main, ["verify", str(tmp_path / "build")]).exit_code == 0
