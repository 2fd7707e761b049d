"""Verify finds every change of a build's files and names the file; a sound build is sound."""

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.account_report import checked
from crystalmix.mixtures.verify.verify import shard_faults, verify
from crystalmix.prep.documents import about
from crystalmix.prep.documents.about import About, Described
from crystalmix.prep.rows import shards, shuffle
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import canonical
from crystalmix.prep.runtime.errors import InputError
from crystalmix.prep.runtime.receipts import Shard
from crystalmix.prep.runtime.types import Json
from helpers import corpora


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    corpora.write_corpus(folder)
    corpora.write_recipe(folder, rows={"rows_per_shard": 32})
    return corpora.built(folder)


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """Return a copy of a build, of folders as builds had them before there was a store."""
    return Path(shutil.copytree(made, tmp_path / "out", ignore=shutil.ignore_patterns("store")))


def files(out: Path, *patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in out.glob(f"**/{pattern}"))


def told_of(out: Path, path: Path) -> str:
    """Return the one line that verify has to tell, which begins with the file."""
    told = verify(out)
    assert len(told) == 1, told
    assert told[0].startswith(f"{path}: "), told
    return told[0].removeprefix(f"{path}: ")


def flipped(path: Path, bit: int) -> bytes:
    """Flip one bit of a file; return what it was."""
    data = path.read_bytes()
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    return data


def test_a_shuffle_that_did_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffle, "order", lambda _, rows, *others: np.arange(*rows))
    corpora.write_corpus(tmp_path)
    path = corpora.write_recipe(tmp_path)
    build(recipes.load(path), tmp_path, tmp_path / "out", workers=1)
    told = verify(tmp_path / "out")
    shuffled = tmp_path / "out" / "domains" / "code" / "shuffled"
    rows = len(shards.folder(shuffled))
    assert rows > 5
    assert any(
        line.startswith(f"{shuffled / 'receipt.json'}: is hardly shuffled: ") for line in told
    )
    assert all("hardly shuffled" in line for line in told)


def test_rows_that_are_equal_are_noted(tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    line = b'{"text": "all the same, over and over again, all the same"}\n'
    (tmp_path / "same.jsonl").write_bytes(line * 600)
    sources = {"book": {"files": ["same.jsonl"], "where": None}}
    out = tmp_path / "out"
    path = corpora.write_recipe(tmp_path, sources=sources, rows={"msl": 32})
    build(recipes.load(path), tmp_path, out, workers=1)
    notes: list[str] = []
    assert verify(out, note=notes.append) == []
    [told] = [note for note in notes if "book" in note]
    assert "rows looked at are equal to another" in told


@pytest.mark.parametrize("workers", [1, 2])
def test_of_a_sound_build_nothing_is_told(made: Path, workers: int) -> None:
    assert verify(made, workers=workers) == []
    result = corpora.crystalmix("verify", made, "--workers", 1)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("sound: every file, count, digest and order agrees: 3 phases (")


def test_a_build_is_sound_as_far_as_it_is_there_and_says_how_far(out: Path) -> None:
    counts = [len(shards.read(path)) for path in out.glob("domains/*/*/*.h5")]
    size = f"{len(counts):,} shards, {sum(counts):,} rows"
    size += " (held to their own digests alone: times of raw files)"
    assert checked(out) == f"3 phases (prose, mixed, code), {size}"
    result = corpora.crystalmix("verify", out, "--workers", 1)
    assert result.exit_code == 0
    assert result.stdout.strip().endswith(f"agrees: 3 phases (prose, mixed, code), {size}")
    (out / "phases" / "sealed.json").unlink()  # as of a build before phases were sealed as a set
    shutil.rmtree(out / "phases" / "code")
    result = corpora.crystalmix("verify", out, "--workers", 1)
    assert result.exit_code == 0
    assert result.stdout.strip().endswith(f"agrees: 2 phases (prose, mixed), {size}")
    assert "a phase that was removed can't be noticed" in result.stderr
    shutil.rmtree(out / "phases" / "mixed")
    assert checked(out) == f"1 phase (prose), {size}"


def test_a_phase_that_was_removed_or_put_in_is_found(out: Path) -> None:
    folder = BuildFolder(out)
    shutil.rmtree(folder.phase("code"))
    gone = f"{folder.manifest('code')}: is missing, though the build sealed it; build again"
    assert verify(out) == [gone]
    shutil.copytree(folder.phase("mixed"), folder.phase("put"))
    lines = verify(out)
    assert gone in lines
    assert f"{folder.manifest('put')}: is not among the phases that the build sealed" in str(lines)


def test_an_edited_set_of_phases_is_found(out: Path) -> None:
    path = BuildFolder(out).phase_set
    path.write_bytes(path.read_bytes().replace(b'"prose"', b'"verse"'))
    assert verify(out) == [f"{path}: was edited; restore it or build again"]


def test_what_is_said_of_sources_is_checked(out: Path) -> None:
    path = out / about.NAME
    about.write(path, {"web": Described(About(licence="MIT"), "0" * 32)})
    notes: list[str] = []
    assert (verify(out, note=notes.append), notes) == ([], [])
    path.write_bytes(path.read_bytes().replace(b"MIT", b"GPL"))
    assert [str(path) in line for line in verify(out)] == [True]
    about.write(path.with_name("new.json"), {"gone": Described(About(), "0" * 32)})
    path.with_name("new.json").replace(path)
    [fault] = verify(out)
    assert "describes source gone, which is not here" in fault


def test_files_that_no_receipt_names_are_noted(out: Path) -> None:
    (out / "notes.txt").write_text("mine")
    notes: list[str] = []
    assert verify(out, note=notes.append) == []
    assert notes == [f"{out}: 1 files are of no build and not read (notes.txt)"]


def test_the_time_of_checking_a_manifest_grows_as_its_shards_do(out: Path) -> None:
    [manifest] = manifests.read_manifests(out / "phases" / "prose")
    part, shard = manifest.parts[0], manifest.parts[0].shards[0]
    looked = Counter[str]()

    class Entries(dict[Path, Shard]):
        def get(self, key: Path, default: Any = None) -> Any:
            looked["up"] += 1
            return super().get(key, default)

    entries = Entries()
    for many in (100, 200):
        shards = tuple(replace(shard, path=f"domains/wiki/shuffled/{i}.h5") for i in range(many))
        looked.clear()
        lines = list(shard_faults(out, manifest, replace(part, shards=shards), entries))
        assert (looked["up"], len(lines)) == (many, many)


def test_a_flipped_bit_of_any_shard_or_table_is_found(out: Path) -> None:
    rng = np.random.default_rng(1)
    for path in files(out, "*.h5", "*.parquet"):
        data = flipped(path, int(rng.integers(8 * path.stat().st_size)))
        assert told_of(out, path).startswith("its bytes changed (xxh3 ")
        path.write_bytes(data)


def test_a_flipped_bit_anywhere_in_a_shard_is_found(out: Path) -> None:
    path = files(out, "code/shuffled/*.h5")[0]
    size = path.stat().st_size
    header, unused = [0, 9, 40, 100], [2048 - 1, size - 1]
    for byte in (*header, *unused, *range(500, size, size // 12)):
        data = flipped(path, 8 * byte + byte % 8)
        assert told_of(out, path).startswith("its bytes changed (xxh3 ")
        path.write_bytes(data)
    assert verify(out) == []


def test_a_flipped_bit_of_a_receipt_manifest_or_tokenizer_is_found(out: Path) -> None:
    rng = np.random.default_rng(2)
    for path in files(out, "*.json"):
        for _ in range(2):
            data = flipped(path, int(rng.integers(8 * path.stat().st_size)))
            assert any(line.startswith(f"{path}: ") for line in verify(out)), path
            path.write_bytes(data)
    assert verify(out) == []


def test_a_flipped_bit_of_a_link_and_of_what_a_build_keeps_is_found(
    made: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(made, tmp_path / "linked", symlinks=True))
    kept = [*files(out, "tokens/*/*"), *files(out, "blocks/*/*")]
    rng = np.random.default_rng(3)
    for path in [*rng.choice(np.array(kept), 12), out / "domains/web/shuffled/data-00000.h5"]:
        data = flipped(path, int(rng.integers(8 * path.stat().st_size)))
        told = verify(out)
        assert len(told) == 1, told
        assert str(path.with_suffix("")).partition(".")[0] in told[0]
        path.write_bytes(data)
    assert verify(out) == []


def test_a_fault_ends_with_exit_code_1_and_names_the_file(out: Path) -> None:
    path = files(out, "wiki/shuffled/*.h5")[0]
    flipped(path, 8 * 600)
    result = corpora.crystalmix("verify", out, "--workers", 1)
    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout.startswith(f"{path}: its bytes changed")
    assert result.stdout.count("\n") == 1
    result = corpora.crystalmix("verify", out, "--workers", 1, "--json")
    assert (result.exit_code, len(orjson.loads(result.stdout))) == (1, 1)


KINDS = "book/epoch-0/*.h5 wiki/shuffled/*.h5 *.origin.parquet *.spans.parquet documents.parquet"


@pytest.mark.parametrize("pattern", KINDS.split())
def test_a_missing_and_a_truncated_file_are_found(out: Path, pattern: str) -> None:
    path = files(out, pattern)[-1]
    data = path.read_bytes()
    path.unlink()
    assert told_of(out, path).startswith("is missing, though the receipt lists it")
    for size in (0, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        assert told_of(out, path).startswith(f"has {size} bytes, its receipt says {len(data)}")


def test_a_swapped_pair_of_shards_is_found(out: Path) -> None:
    one, two = files(out, "wiki/shuffled/*.h5")[:2]
    data = one.read_bytes(), two.read_bytes()
    one.write_bytes(data[1])
    two.write_bytes(data[0])
    told = verify(out)
    assert [line.split(": ")[0] for line in told] == [str(one), str(two)]


def sealed(path: Path, change: Callable[[Json], object]) -> bytes:
    """Change a receipt or manifest and make its digest anew; return what it was."""
    data = path.read_bytes()
    content = orjson.loads(data)
    change(content)
    content["digest"] = receipts.digest({k: v for k, v in content.items() if k != "digest"})
    path.write_bytes(canonical(content))
    return data


def test_a_pair_of_shards_swapped_in_their_receipt_too_is_found(out: Path) -> None:
    one, two, *_ = files(out, "wiki/shuffled/*.h5")
    data = one.read_bytes(), two.read_bytes()
    one.write_bytes(data[1])
    two.write_bytes(data[0])
    keys = ("bytes", "xxh3", "digest", "rows_sum", "rows")

    def swap(receipt: Json) -> None:
        entries = [e for e in receipt["files"] if e["name"] in {one.name, two.name}]
        first, second = ({key: entry[key] for key in keys} for entry in entries)
        entries[0].update(second)
        entries[1].update(first)

    sealed(one.parent / "receipt.json", swap)
    told = "\n".join(verify(out))
    assert f"{one.parent}: holds content " in told
    assert "data-00000.h5 has another digest than the manifest says" in told


# Accounts that still balance, so that only counting the files again can tell: stage -> key -> by.
FALSE = {
    "documents": [{"documents": 1, "records": 1}, {"characters": 1}, {"bytes": -1}],
    "pack": [
        {"tokens_in": 1, "text_tokens": 1, "tokens_out": 1},
        {"text_tokens": 1, "controls": -1, "controls_out": -1},
        {"documents": 1},
        {"permuted": 1},
        {"padding": 1},
        {"rows": 1},
    ],
    "fim": [{"recut": 1, "tokens_out": 1}, {"controls_out": 1}, {"padding": -1}, {"rows": 1}],
    "shuffle": [{"tokens_in": 1, "tokens_out": 1}, {"controls_out": 1}, {"rows": 1}],
}


def test_a_falsified_account_is_found_though_it_balances(out: Path) -> None:
    for path in files(
        out, "sources/web/receipt.json", "python/*/receipt.json", "wiki/*/receipt.json"
    ):
        stage = orjson.loads(path.read_bytes())["stage"]
        for change in FALSE[stage]:
            if "controls" in change and stage == "pack" and "python" in path.parts:
                continue  # rows that row-level FIM follows: nothing is left to count them in

            def falsify(receipt: Json, change: dict[str, int] = change) -> None:
                for key, by in change.items():
                    receipt["account"][key] += by

            data = sealed(path, falsify)
            # controls of rows that are laid out only are counted where these rows are shuffled
            place = path.parent if "wiki" not in path.parts else path.parents[1]
            assert any(line.startswith(f"{place}") for line in verify(out)), (path, change)
            path.write_bytes(data)


def test_what_a_receipt_says_of_rows_that_are_laid_out_is_held_against_the_shuffled_ones(
    out: Path,
) -> None:
    path = files(out, "wiki/epoch-0/receipt.json")[0]
    for key, told in (
        ("rows_sum", "its rows are not those of its inputs"),
        ("rows", "rows, its re"),
    ):
        data = sealed(path, lambda receipt, key=key: receipt["shards"][0].update({key: 5}))
        assert any(told in line for line in verify(out)), key
        path.write_bytes(data)
    data = sealed(path, lambda receipt: receipt.pop("shards"))
    assert any("is no whole receipt (it lacks shards" in line for line in verify(out))
    path.write_bytes(data)


def test_an_account_that_does_not_balance_is_told_with_its_numbers(out: Path) -> None:
    path = files(out, "book/epoch-0/receipt.json")[0]
    account = orjson.loads(path.read_bytes())["account"]
    sealed(path, lambda receipt: receipt["account"]["dropped"].update(tail=3))
    assert (
        f"{path}: tokens in {account['tokens_in']} are not tokens out {account['tokens_out']} "
        "+ dropped 3"
    ) in verify(out)
    path = files(out, "sources/web/receipt.json")[0]
    sealed(path, lambda receipt: receipt["account"].update(records=7))
    assert f"{path}: records 7 are not documents 36 + dropped 90" in verify(out)


def test_an_edited_receipt_is_told(out: Path) -> None:
    path = files(out, "web/shuffled/receipt.json")[0]
    path.write_bytes(path.read_bytes().replace(b'"seed": 7', b'"seed": 8'))
    assert f"{path}: was edited (its digest does not match); build again" in verify(out)


ODD: tuple[Any, ...] = (None, 7, "x", [], {}, [1])


def test_a_receipt_that_is_sealed_with_odd_values_is_told(out: Path) -> None:
    """Whoever forges a receipt and its digest gets a line, not a traceback."""
    paths = files(out, "sources/web/receipt.json", "python/*/receipt.json", "lookup.json")
    for path in paths:
        for number, key in enumerate(("files", "account", "blocks", "stage", "origin")):
            if key in orjson.loads(path.read_bytes()):
                odd = ODD[number % len(ODD)]
                data = sealed(path, lambda receipt, k=key, v=odd: receipt.update({k: v}))
                assert any(line.startswith(str(path)) for line in verify(out)), (path, key)
                path.write_bytes(data)
    for path in paths:
        data = sealed(path, lambda receipt: receipt["files"][0].update(name="other", bytes="x"))
        assert any(line.startswith(str(path.parent)) for line in verify(out)), path
        path.write_bytes(data)


def test_a_receipt_that_lacks_something_is_told(out: Path) -> None:
    for path in files(out, "sources/web/receipt.json", "python/*/receipt.json"):
        for key in {*orjson.loads(path.read_bytes())} - {"digest", "seen"}:
            data = sealed(path, lambda receipt, key=key: receipt.pop(key))
            lacks = f"{key}.name" if key in ("files", "shards") else key
            assert f"{path}: is no whole receipt (it lacks {lacks}); build again" in verify(out)
            path.write_bytes(data)
    path = files(out, "wiki/epoch-0/receipt.json")[0]
    sealed(path, lambda receipt: receipt["account"].pop("tokens_in"))
    told = f"{path}: its account lacks tokens_in; build again"
    assert told in verify(out)


def test_what_is_unfinished_is_told(out: Path) -> None:
    told = "holds files but no receipt.json: it is unfinished; build again to go on, or remove it"
    for name in ("domains/book/epoch-0", "sources/web", "domains/code/epoch-1"):
        path = out / name / "receipt.json"
        data = path.read_bytes()
        path.unlink()
        assert f"{out / name}: {told}" in verify(out)
        path.write_bytes(data)
    left = out / "domains" / "new" / "epoch-0" / "tokens" / "block-00000.ids"
    left.parent.mkdir(parents=True)
    assert verify(out) == []
    left.write_bytes(b"")
    assert verify(out) == [f"{out / 'domains/new/epoch-0'}: {told}"]
    shutil.rmtree(out / "domains" / "new")
    shutil.rmtree(out / "phases")
    assert verify(out) == [
        f"{out / 'phases'}: holds no manifest: the build is unfinished; build again to go on"
    ]


def test_a_shard_of_no_receipt_is_told(out: Path) -> None:
    path = out / "domains" / "wiki" / "shuffled" / "data-00099.h5"
    path.write_bytes(b"")
    assert told_of(out, path) == "is in no receipt; remove it"


def test_what_is_no_build_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"holds no build \(no receipt.json below it; is it for --run[?]\)"
    ):
        verify(tmp_path)
