"""Copies of builds and runs behind urls, and mirrors of them: whole, resumed, exact, bounded."""

import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from time import sleep, time
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

import crystalmix as cm
from crystalmix.prep.objects import remote as remotes
from crystalmix.prep.objects.index import NAME, File, Index
from crystalmix.prep.objects.waiting import bring, cache_root
from crystalmix.prep.runtime.atomic_files import temporary_name
from crystalmix.prep.runtime.errors import DamageError, InputError, MachineError, UsageError
from crystalmix.train.loader.batches import Share
from helpers import corpora, runs


class Unsteady(LocalFileSystem):
    """A store on disk whose answers fail: `fail(operation, path)` raises or changes what it did."""

    protocol = ("unsteady",)
    calls: list[tuple[str, str]]
    fail: Any = None

    def _count(self, operation: str, path: str) -> None:
        type(self).calls.append((operation, path.rpartition("/")[2]))
        if type(self).fail is not None:
            type(self).fail(operation, path)

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self._count("cat", path)
        return super().cat_file(path, *args, **kwargs)

    def get_file(self, path1: str, path2: str, *args: Any, **kwargs: Any) -> None:
        super().get_file(path1, path2, *args, **kwargs)
        self._count("get", path2 if type(self).fail is cut else path1)

    def pipe_file(self, path: str, *args: Any, **kwargs: Any) -> None:
        self._count("put" if path.endswith(NAME) else "pipe", path)
        super().pipe_file(path, *args, **kwargs)

    def put_file(self, path1: str, path2: str, *args: Any, **kwargs: Any) -> None:
        self._count("put", path2)
        super().put_file(path1, path2, *args, **kwargs)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).removeprefix("unsteady://"))


def cut(operation: str, path: str) -> None:
    """Lose the end of what arrived, every time."""
    if operation == "get":
        os.truncate(path, max(0, Path(path).stat().st_size - 1))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("CRYSTALMIX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remotes, "FIRST_PAUSE", 0.001)
    fsspec.register_implementation("unsteady", Unsteady, clobber=True)
    Unsteady.calls, Unsteady.fail = [], None
    yield tmp_path / "cache"
    Unsteady.fail = None


def url_of(place: Path) -> str:
    return f"unsteady://{place}"


def opened(place: str | Path) -> cm.Build:
    build = cm.open(place)
    assert isinstance(build, cm.Build)
    return build


def files(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, through its links, and where each link leads."""
    found: dict[str, bytes] = {}
    for root, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(root, name)
            inside = path.relative_to(folder).as_posix()
            if path.is_symlink():
                found[inside] = os.fsencode(path.readlink())
            elif path.is_file():
                found[inside] = path.read_bytes()
    return found


def test_a_build_goes_there_and_back_bit_for_bit(tmp_path: Path) -> None:
    build = runs.small_build()
    sent = cm.copy(build, url_of(tmp_path / "there"))
    assert sent.there == 0
    back = cm.copy(url_of(tmp_path / "there"), tmp_path / "back")
    assert files(tmp_path / "back") == files(build)
    assert back.received == back.bytes + (tmp_path / "there" / NAME).stat().st_size
    again = cm.copy(build, url_of(tmp_path / "there"))
    assert (again.there, again.sent, again.requests) == (again.files, 0, 1)
    assert corpora.crystalmix("verify", tmp_path / "back", "--workers", 1).exit_code == 0
    with pytest.raises(InputError, match="is there already"):
        cm.copy(url_of(tmp_path / "there"), tmp_path / "back")


def test_a_copy_that_was_ended_is_not_whole_and_goes_on(tmp_path: Path) -> None:
    build, there = runs.small_build(), tmp_path / "there"

    def end(operation: str, path: str) -> None:
        if operation == "put" and len(Unsteady.calls) > 100:
            raise PermissionError("not any more")

    Unsteady.fail = end
    with pytest.raises(MachineError, match=r"can't be sent \(not any more, 1 tries\)"):
        cm.copy(build, url_of(there))
    held = sum(path.is_file() for path in there.rglob("*"))
    assert held > 50
    with pytest.raises(InputError, match="holds no whole build or run"):
        cm.open(url_of(there))
    Unsteady.fail = None
    sent = cm.copy(build, url_of(there))
    assert 0 < sent.there <= held
    Unsteady.fail, Unsteady.calls = None, []
    assert corpora.crystalmix("verify", url_of(there), "--workers", 1).exit_code == 0


def test_a_changed_build_sends_what_changed_and_a_mirror_follows(tmp_path: Path) -> None:
    build, url = corpora.built(tmp_path), url_of(tmp_path / "there")
    cm.copy(build, url)
    before = opened(url)
    steps = before.phases["code"].manifest.steps
    corpora.write_recipe(tmp_path, phases={"code": {"steps": steps - 1}})
    cm.build(tmp_path / "recipe.yaml", build)
    sent = cm.copy(build, url)
    assert 0 < sent.files - sent.there < 40
    assert sent.sent < sent.bytes / 3
    after = opened(url)
    assert after.phases["code"].manifest.steps == steps - 1
    cm.copy(url, tmp_path / "back")
    assert files(tmp_path / "back") == files(build)


def test_a_build_into_a_url_goes_on_after_its_end_and_on_another_machine(
    tmp_path: Path, cache: Path
) -> None:
    corpora.write_corpus(tmp_path)
    recipe, there = corpora.write_recipe(tmp_path), tmp_path / "there"

    def end(operation: str, path: str) -> None:
        if operation == "put" and len(Unsteady.calls) > 100:
            raise PermissionError("not any more")

    Unsteady.fail = end
    with pytest.raises(MachineError, match="not any more"):
        cm.build(recipe, url_of(there))
    Unsteady.fail = None
    told = corpora.crystalmix("build", recipe, "--out", url_of(there), "--workers", 1)
    assert told.exit_code == 0
    assert "unsteady://" in told.stderr
    assert "requests" in told.stderr
    small = runs.small_build()
    assert corpora.crystalmix("diff", url_of(there), small).stdout == "equal\n"
    corpora.remove(cache)  # as a machine is that never saw it
    Unsteady.calls = []
    cm.build(recipe, url_of(there))
    assert "put" not in {operation for operation, _ in Unsteady.calls}


def test_a_build_into_a_url_is_refused_before_it_begins(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "other").write_bytes(b"x")
    with pytest.raises(InputError, match="holds other objects, as other"):
        cm.build("crystalcoder", url_of(there))


def test_training_from_a_url_is_training_from_the_folder_and_brings_its_shards_alone(
    tmp_path: Path, cache: Path
) -> None:
    url = url_of(tmp_path / "there")
    cm.copy(runs.small_build(), url)
    Unsteady.calls = []
    run = tmp_path / "run"
    cm.train(url, runs.run_file(), out=run, phases=["prose"])
    assert runs.recorded(run, "prose") == runs.recorded(runs.undisturbed(), "prose")
    assert runs.weights(run, "prose") == runs.weights(runs.undisturbed(), "prose")
    brought = {path.parent.name for path in cache.rglob("*.h5")}
    manifest = opened(runs.small_build()).phases["prose"].manifest
    named = {(runs.small_build() / path).parent.resolve().name for path in manifest.paths}
    assert brought == named
    shards = [name for _, name in Unsteady.calls if name.endswith(".h5")]
    assert len(shards) == len(list(cache.rglob("*.h5")))  # each once
    assert not list(cache.rglob("store/tokens"))
    told = corpora.crystalmix("trace", run, "--step", "prose:3")
    assert (told.exit_code, told.stdout) == (
        0,
        corpora.crystalmix("trace", runs.undisturbed(), "--step", "prose:3").stdout,
    )
    cm.copy(run, url_of(tmp_path / "runs"))
    told = corpora.crystalmix("verify", url, "--run", url_of(tmp_path / "runs"), "--workers", 1)
    assert (told.exit_code, told.stderr) == (0, "")


def test_a_bounded_cache_holds_no_more_and_gives_the_same_rows(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url_of(tmp_path / "there")
    cm.copy(runs.small_build(), url)
    shards = [path.stat().st_size for path in runs.small_build().glob("store/rows/*/*.h5")]
    bound = 4 * max(shards)
    monkeypatch.setenv("CRYSTALMIX_CACHE_BYTES", str(bound))
    phase, there = opened(url).phases["mixed"], opened(runs.small_build()).phases["mixed"]
    named = [phase.build / path for path in phase.manifest.paths]
    first, *others = zip(phase.batches(), there.batches(), strict=True)
    until, held = time() + 30, bound + 1
    while held > bound and time() < until:  # threads may still bring what they were asked ahead
        for place, path in enumerate(sorted(cache.rglob("data-*.h5"))):  # what was brought may go,
            brought = time() + (-1 if place % 2 else 1) * 3600  # also by a clock that was set back
            os.utime(path, (brought, brought))
        [path, *_] = [path for path in named if path.exists()]
        path.unlink()
        assert bring(path)
        held = sum(path.stat().st_size for path in cache.rglob("data-*.h5"))
    assert held <= bound
    again = next(phase.batches())  # of shards that made room, too
    for batch, same in ((again, first[1]), first, *others):
        assert (batch.ids == same.ids).all()
        assert (batch.row == same.row).all()
    monkeypatch.setenv("CRYSTALMIX_CACHE_BYTES", "much")
    [missing, *_] = [path for path in named if not path.exists()]
    with pytest.raises(UsageError, match="CRYSTALMIX_CACHE_BYTES: must be a number of bytes"):
        bring(missing)


def test_errors_that_pass_are_tried_again_and_those_that_stay_are_told(tmp_path: Path) -> None:
    there = tmp_path / "there"
    seen: dict[str, int] = {}

    def twice(operation: str, path: str) -> None:
        seen[path] = seen.get(path, 0) + 1
        if seen[path] % 3:
            raise OSError("503 Slow Down")

    Unsteady.fail = twice
    sent = cm.copy(runs.small_build(), url_of(there))
    assert sent.requests > 2 * sent.files
    Unsteady.fail = cut
    with pytest.raises(MachineError, match=r"can't be fetched \(\d+ bytes arrived, expected \d+"):
        cm.copy(url_of(there), tmp_path / "back")
    assert not (tmp_path / "back").exists()
    Unsteady.fail = None
    [shard, *_] = sorted(there.glob("store/rows/*/data-00000.h5"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(MachineError, match="its digest is not"):
        cm.copy(url_of(there), tmp_path / "back")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://key:secret@bucket/x", "carries credentials"),
        ("https://host/x?X-Amz-Signature=abc", "carries credentials"),
        ("nosuch://bucket/x", "can't be opened"),
    ],
)
def test_urls_that_can_not_be_are_refused_without_their_secrets(
    tmp_path: Path, url: str, told: str
) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        cm.copy(url, tmp_path / "x")
    assert "secret" not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_a_copy_has_a_folder_and_a_url(tmp_path: Path) -> None:
    told = corpora.crystalmix("copy", tmp_path, tmp_path / "b")
    assert (told.exit_code, told.stderr.count("one of them must be a url")) == (2, 1)
    with pytest.raises(InputError, match="is no build and no run"):
        cm.copy(tmp_path, "memory://x")


def test_an_index_that_leads_out_of_its_folder_is_refused() -> None:
    for files_, links in (
        ({"../x": File(1, "0")}, {}),
        ({"/etc/x": File(1, "0")}, {}),
        ({}, {"a": "../x"}),
        ({}, {"a/b": "../../x"}),
        ({}, {"a": "/etc"}),
    ):
        with pytest.raises(DamageError, match="out of its folder"):
            Index.parse(Index(files_, links).raw(), "there")
    raw = Index({"x": File(1, "0")}, {}).raw()
    with pytest.raises(DamageError, match="does not match its digest"):
        Index.parse(raw.replace(b'"x"', b'"y"'), "there")
    with pytest.raises(DamageError, match="is no index"):
        Index.parse(b"[]", "there")


def test_nothing_is_fetched_for_a_build_beside_what_looks_like_a_mirror(tmp_path: Path) -> None:
    (tmp_path / "mirror.json").write_text('{"url": "unsteady:///etc"}')
    (tmp_path / "objects.json").write_bytes(Index({}, {}).raw())
    assert not bring(tmp_path / "build" / "data-00000.h5")
    assert Unsteady.calls == []
    assert cache_root() != tmp_path


def test_a_store_whose_client_is_not_installed_is_told_with_the_extra(tmp_path: Path) -> None:
    if find_spec("s3fs") is not None:
        pytest.skip("it is installed")
    for words in (("show", "s3://bucket/x"), ("verify", "s3://bucket/x")):
        told = corpora.crystalmix(*words)
        assert told.exit_code == 2
        assert told.stderr.endswith("(Install s3fs to access S3); install 'crystalmix[s3]'\n")
    assert not list(tmp_path.glob("cache/*"))


def test_objects_of_others_are_never_removed(tmp_path: Path) -> None:
    there = tmp_path / "there"
    (there / "raw").mkdir(parents=True)
    (there / "raw" / "data.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"holds other objects, as raw/data.jsonl"):
        cm.copy(runs.small_build(), url_of(there))
    cm.copy(runs.small_build(), url_of(there / "build"))
    (there / "build" / "README").write_text("notes of somebody")
    (there / "build" / NAME).unlink()  # as if an update was ended
    with pytest.raises(InputError, match="holds other objects"):
        cm.copy(runs.small_build(), url_of(there / "build"))
    assert (there / "build" / "README").exists()
    assert (there / "raw" / "data.jsonl").exists()


def test_a_file_that_changed_in_the_middle_of_a_copy_is_sent_anew(tmp_path: Path) -> None:
    build, there = runs.copied_build(tmp_path / "build"), tmp_path / "there"
    [shard, *_] = sorted(build.glob("store/rows/*/data-00000.h5"))

    def end(operation: str, path: str) -> None:
        if operation == "put" and path.endswith(NAME):
            raise PermissionError("not any more")

    Unsteady.fail = end
    with pytest.raises(MachineError):
        cm.copy(build, url_of(there))
    raw = shard.read_bytes()
    shard.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))  # of the same size, as a purge may leave it
    Unsteady.fail, Unsteady.calls = None, []
    cm.copy(build, url_of(there))
    assert [name for operation, name in Unsteady.calls if operation == "put"] == [shard.name, NAME]
    assert (there / shard.relative_to(build)).read_bytes() == shard.read_bytes()
    assert not list(there.glob("*.part.json"))


@pytest.mark.parametrize("scheme", ["unsteady", "memory"])
def test_names_are_never_read_as_parts_of_a_url(tmp_path: Path, scheme: str) -> None:
    names = ["a#b", "a?b", "a::b", "a%20b", "\u00e4 b", "memory:", "a+b", "@b", "x{1}"]
    folder = tmp_path / "folder"
    (folder / "phases").mkdir(parents=True)
    for name in names:
        (folder / "phases" / name).write_text(name, "utf-8")
    url = url_of(tmp_path / "there") if scheme == "unsteady" else f"memory://{tmp_path.name}"
    cm.copy(folder, url)
    cm.copy(url, tmp_path / "back")
    assert files(tmp_path / "back") == files(folder)
    assert cm.copy(folder, url).there == len(names)


def test_a_mixture_goes_with_its_build_alone(tmp_path: Path) -> None:
    build = corpora.built(tmp_path)
    cm.mix(corpora.write_recipe(tmp_path, name="other"), build)
    with pytest.raises(InputError, match="out of the folder; of a mixture copy the whole build"):
        cm.copy(build / "mixtures" / "other", url_of(tmp_path / "alone"))
    cm.copy(build, url_of(tmp_path / "there"))
    cm.copy(url_of(tmp_path / "there"), tmp_path / "back")
    assert cm.verify(tmp_path / "back" / "mixtures" / "other").faults == ()


def test_the_next_shard_of_a_part_comes_while_one_is_read(tmp_path: Path) -> None:
    url = url_of(tmp_path / "there")
    cm.copy(runs.small_build(), url)
    phase = opened(url).phases["prose"]
    batch = Share(phase.manifest, phase.build).read(0)
    read = set(batch.shard.tolist())
    coming = {i + 1 for i in read} - read - {len(phase.manifest.paths)}
    assert coming
    for _ in range(200):
        if all((phase.build / phase.manifest.paths[i]).exists() for i in coming):
            return
        sleep(0.05)
    raise AssertionError(coming)


def test_what_a_build_leaves_while_it_runs_is_not_copied(tmp_path: Path) -> None:
    build = runs.copied_build(tmp_path / "build")
    (build / ".ranks").mkdir()
    (build / ".ranks" / "task").write_text("")
    temporary_name(build / "tokenizer.json").write_text("half")
    cm.copy(build, url_of(tmp_path / "there"))
    names = {path.name for path in (tmp_path / "there").rglob("*")}
    assert "tokenizer.json" in names
    assert not [name for name in names if name.startswith(".")]


def test_an_earlier_copy_stays_whole_while_what_is_new_is_sent(tmp_path: Path) -> None:
    build, there = runs.copied_build(tmp_path / "build"), tmp_path / "there"
    cm.copy(build, url_of(there))
    (build / "phases" / "prose" / "new").write_bytes(b"x" * 99)
    whole: dict[str, bool] = {}

    def end(operation: str, path: str) -> None:
        whole[path.rpartition("/")[2]] = (there / NAME).exists()
        if path.endswith("/new"):
            raise PermissionError("not any more")

    Unsteady.fail = end
    with pytest.raises(MachineError, match="not any more"):
        cm.copy(build, url_of(there))
    assert whole["new"]
    Unsteady.fail = None
    assert opened(url_of(there)).phases
    cm.copy(build, url_of(there))
    cm.copy(url_of(there), tmp_path / "back")
    assert files(tmp_path / "back") == files(build)
    assert not list(there.glob("*.part.json"))


def test_what_a_question_read_by_ranges_is_said_where_that_is_asked(tmp_path: Path) -> None:
    build, run = url_of(tmp_path / "build"), url_of(tmp_path / "run")
    cm.copy(runs.small_build(), build)
    cm.copy(runs.undisturbed(), run)
    words = ("trace", run, "--build", build, "--step", "prose:3")
    told = corpora.crystalmix("-v", *words)
    assert told.exit_code == 0
    line = rf"note: {re.escape(build)}: [\d,]+ bytes of ranges brought in [1-9]\d* requests"
    assert re.search(line, told.stderr), told.stderr
    again = corpora.crystalmix("-v", *words)  # the blocks are here
    assert "of ranges" not in again.stderr
    assert again.stdout == told.stdout


class Died(BaseException):
    """The end of a process, at a moment that a test chooses."""


@pytest.mark.parametrize("index", [1, 2])  # of what is begun, and of what is whole
def test_a_copy_whose_process_dies_within_its_index_goes_on(
    index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-written index at a `file://` url was refused until a hand removed it."""
    build, there, writes = runs.copied_build(tmp_path / "build"), tmp_path / "there", [0]

    def dying(_descriptor: int) -> None:
        writes[0] += 1
        if writes[0] == index:
            raise Died

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", dying)
        with pytest.raises(Died):
            cm.copy(build, f"file://{there}")
    temporary_name(there / NAME).write_text("half")  # as a killed process leaves it
    assert not (there / NAME).exists()
    cm.copy(build, f"file://{there}")
    cm.copy(f"file://{there}", tmp_path / "back")
    assert cm.verify(tmp_path / "back").faults == ()
