"""Ranks that share only a url: results of all, kills, secrets, sessions that are taken over."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crystalmix.prep.engines import ranks
from crystalmix.prep.objects import ranks_apart
from crystalmix.prep.objects.ranks_apart import RanksApart
from crystalmix.prep.runtime.errors import DamageError, InputError, RefusalError, UsageError
from helpers import corpora

# Items read a file that an item of the stage before wrote, at whatever rank that ran.
WORK = """
from crystalmix.prep.runtime.atomic_files import replacing
def write(item):
    folder, number = item
    with replacing(folder / "first" / str(number)) as path:
        path.write_text(str(number * number))
    return number
def add(item):
    folder, number = item
    if number == 7 and (folder / "bad").exists():
        raise ValueError("item 7")
    return sum(int((folder / "first" / str(n)).read_text()) for n in (number, (number + 1) % 9))
"""
RANK = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
import work
from crystalmix.prep.objects.ranks_apart import RanksApart
url, rank, ranks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
folder = Path(os.environ["OWN"], "out")
apart = RanksApart(url)
if rank:
    print(apart.follow(folder, rank, ranks, 1))
else:
    folder.mkdir(parents=True, exist_ok=True)
    with apart.lead(folder, ranks, 1) as engine:
        items = [(folder, number) for number in range(9)]
        list(engine.map(work.write, items, "write"))
        (folder / "first" / "late").write_text("of rank 0 alone")
        print(list(engine.map(work.add, items, "add")))
"""
SUMS = [n * n + ((n + 1) % 9) ** 2 for n in range(9)]


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give a url; the secret is set, and the work can be imported."""
    monkeypatch.setenv(ranks_apart.SECRET, "a secret")
    (tmp_path / "work.py").write_text(WORK, "utf-8")
    return f"file://{tmp_path}/url"


def start(url: str, rank: int, place: Path, **env: str) -> "subprocess.Popen[str]":
    """Start a rank; `own` is a link of one text that leads each to a folder of its own."""
    disk = place / f"disk-{rank}"
    disk.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", RANK, url, str(rank), "3", str(place)],
        cwd=disk,
        env={**os.environ, "OWN": "/proc/self/cwd", **env},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_items_see_what_other_ranks_wrote_and_all_results_come_in_order(
    url: str, tmp_path: Path
) -> None:
    everyone = [start(url, rank, tmp_path) for rank in range(3)]
    told = [process.communicate(timeout=60) for process in everyone]
    assert [process.returncode for process in everyone] == [0, 0, 0], told
    assert [out.strip() for out, _ in told] == [str(SUMS), "6", "6"]
    assert (tmp_path / "disk-2/out/first/late").read_text("utf-8") == "of rank 0 alone"


def run(url: str, place: Path) -> list[tuple[int, str, str]]:
    everyone = [start(url, rank, place) for rank in range(3)]
    told = [process.communicate(timeout=60) for process in everyone]
    return [(process.returncode, *words) for process, words in zip(everyone, told, strict=True)]


def test_an_error_of_an_item_is_rank_0s_and_ends_the_others(url: str, tmp_path: Path) -> None:
    (tmp_path / "disk-1/out").mkdir(parents=True)
    (tmp_path / "disk-0/out").mkdir(parents=True)
    (tmp_path / "disk-0/out/bad").touch()  # which rank 1, whose item it is, gets from rank 0
    first, second, third = run(url, tmp_path)
    assert first[0] == 1
    assert first[2].endswith("ValueError: item 7\n")
    for rank in (second, third):
        assert rank[2].endswith("WorkerError: rank 0 failed: item 7\n")


def test_what_another_secret_signed_is_not_read(url: str, tmp_path: Path) -> None:
    apart, out = RanksApart(url), tmp_path / "out"
    out.mkdir()
    with apart.lead(out, 2, 1):
        pass
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "PATIENCE", 1.0)  # who reads it would wait for the next session
        patch.setenv(ranks_apart.SECRET, "another")
        with pytest.raises(DamageError, match=r"\.ranks/session: is not signed by this CRYSTALMIX"):
            apart.follow(out, 1, 2, 1)
        patch.delenv(ranks_apart.SECRET)
        with pytest.raises(UsageError, match=f"{ranks_apart.SECRET}: is not set"):
            apart.follow(out, 1, 2, 1)


def test_ranks_whose_folders_have_other_paths_are_refused(url: str, tmp_path: Path) -> None:
    apart, out = RanksApart(url), tmp_path / "out"
    out.mkdir()
    engine = apart.lead(out, 2, 1)
    with pytest.raises(KeyboardInterrupt), engine:
        raise KeyboardInterrupt  # its session goes on
    with pytest.raises(UsageError, match=r"elsewhere: rank 0 builds in .*/out; set CRYSTALMIX_CAC"):
        apart.follow(tmp_path / "elsewhere", 1, 2, 1)
    with pytest.raises(UsageError, match="--ranks: rank 0 has 2, got 3"):
        apart.follow(out, 1, 3, 1)


def test_a_rank_0_on_a_new_host_goes_on_from_what_lies_at_the_url(url: str, tmp_path: Path) -> None:
    everyone = [start(url, rank, tmp_path) for rank in range(2)]  # the third never comes
    until = time.monotonic() + 60
    while not [*(tmp_path / "url/.ranks").glob("*/00000.1-0")]:
        assert time.monotonic() < until
        time.sleep(0.01)
    for process in everyone:
        process.kill()
        process.communicate()
    (tmp_path / "disk-0").rename(tmp_path / "lost")
    (tmp_path / "url/first/1").unlink()  # it is made again
    first, second, third = run(url, tmp_path)
    assert [first[0], second[0], third[0]] == [0, 0, 0], (first, second, third)
    assert first[1].strip() == str(SUMS)


def test_a_new_host_begins_with_what_lies_at_the_url(url: str, tmp_path: Path) -> None:
    for name in ("lost", "new"):
        (tmp_path / name).mkdir()
    (tmp_path / "lost/made").write_text("before", "utf-8")
    for name in ("lost", "new"):
        engine = RanksApart(url).lead(tmp_path / name, 2, 1)
        with pytest.raises(KeyboardInterrupt), engine:
            raise KeyboardInterrupt  # killed
    assert (tmp_path / "new/made").read_text("utf-8") == "before"


def test_a_message_of_which_a_byte_changed_is_not_read(url: str, tmp_path: Path) -> None:
    apart, out = RanksApart(url), tmp_path / "out"
    out.mkdir()
    with apart.lead(out, 2, 1):
        pass
    message = tmp_path / "url/.ranks/session"
    content = bytearray(message.read_bytes())
    content[-1] ^= 1
    message.write_bytes(content)
    with pytest.raises(DamageError, match="session: is not signed"):
        apart.follow(out, 1, 2, 1)


def test_an_earlier_rank_0_ends_when_another_began(url: str, tmp_path: Path) -> None:
    folders = tmp_path / "out", tmp_path / "of another host"
    for folder in folders:
        folder.mkdir()
    earlier, later = (RanksApart(url).lead(folder, 2, 1) for folder in folders)
    with earlier as engine:
        with pytest.raises(KeyboardInterrupt), later:
            raise KeyboardInterrupt
        with pytest.raises(RefusalError, match="another rank 0 began to build there"):
            list(engine.map(abs, [1, 2], "abs"))
    assert not [*(tmp_path / "url/.ranks").glob("*/end")]  # that of the other goes on


def test_a_place_of_others_is_refused_and_stays(url: str, tmp_path: Path) -> None:
    (tmp_path / "url").mkdir()
    (tmp_path / "url/theirs").write_text("kept", "utf-8")
    (tmp_path / "out").mkdir()
    engine = RanksApart(url).lead(tmp_path / "out", 2, 1)
    with pytest.raises(InputError, match="holds other objects, as theirs"), engine:
        pass
    assert [path.name for path in (tmp_path / "url").iterdir()] == ["theirs"]


def test_a_store_apart_and_ray_do_not_go_with_a_url(url: str, tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    recipe = corpora.write_recipe(tmp_path)
    for words, remedy in (
        (["--store", tmp_path / "store", "--rank", 0, "--ranks", 2], "--store: goes with a folder"),
        (["--engine", "ray"], "nodes of Ray share the folder of --out"),
    ):
        told = corpora.crystalmix("build", recipe, "--out", url, *words)
        assert told.exit_code == 2
        assert remedy in told.stderr
