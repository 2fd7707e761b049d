"""Import: sealed manifests over shards that Model Zoo wrote, which are only linked, never touched.

    domains/<domain>/imported/data-*.h5   links to the shards, and a receipt of stage `import`
    phases/<phase>/manifest.json          one for each params.yaml, in Model Zoo's order

There are no spans, for nobody knows the documents of such rows, and no tokenizer. Each shard has
the digest of its decoded rows; without digests (terabytes take hours to read) that of its place,
rows and size stands for it, and manifest and receipt say so.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, get_args

from crystalmix.mixtures.build import seal
from crystalmix.mixtures.build.accounts import ImportAccount
from crystalmix.mixtures.build.build import alone, store, sweep, unsealed
from crystalmix.mixtures.build.context import Folder, naming, rows_in
from crystalmix.mixtures.build.seal import Basis
from crystalmix.mixtures.manifest.build_folder import IMPORTED, BuildFolder
from crystalmix.mixtures.manifest.cerebras_order import Zeros, ZooSettings
from crystalmix.mixtures.manifest.manifest import Manifest, TokenizerIdentity
from crystalmix.mixtures.modelzoo import read_params
from crystalmix.mixtures.modelzoo.read_params import TrainInput, ZooParams
from crystalmix.mixtures.recipes.phase import Part, Phase
from crystalmix.mixtures.recipes.recipe import NAME, Domain
from crystalmix.mixtures.verify import accounts
from crystalmix.mixtures.verify.accounts import IMPORT, Check
from crystalmix.prep.rows import shards
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import file_digest
from crystalmix.prep.runtime.errors import RecipeError, RefusalError, StaleError, UsageError
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.runtime.workers import Fanout

VERSION = 1
ROWS, SIZES = "rows", "names and sizes"  # what digests are of
Subset = Literal["1.9.1", "2.0.3"]
Placed = dict[str, tuple[str, list[Path]]]  # data_dir -> its domain and shards
SUBSETS = (
    "data_subset is taken as Model Zoo 2.0.3 does, which gives the rows it names; the public 1.9.1 "
    "takes others (0.0-0.1 gives the second tenth there): --subset 1.9.1 tells those"
)


@dataclass(frozen=True)
class ImportSettings:
    """What was consumed, by which program, and how well its shards shall be known.

    params: one params.yaml a phase, in order. maps: DATA_DIR=FOLDER[,FOLDER...] where names don't
    match. subset, zeros: as in ZooSettings. digests: read every row for the digest of each shard.
    """

    params: tuple[Path, ...]
    maps: tuple[str, ...] = ()
    subset: Subset = "2.0.3"
    zeros: Zeros = "aligned"
    digests: bool = True

    def __post_init__(self) -> None:
        for key, allowed in (("subset", get_args(Subset)), ("zeros", get_args(Zeros))):
            if (value := getattr(self, key)) not in allowed:
                raise UsageError(f"--{key}: must be {' or '.join(allowed)}, got {value!r}")


@dataclass(frozen=True)
class Measure:
    """Tell rows and digests of one shard; done: where the result is kept until the folder's seal.

    place: below the imported folder, which names the shard where there are no digests.
    """

    mark: str
    file: Path
    place: str
    digests: bool
    done: Path


def import_shards(
    root: Path, out: Path, settings: ImportSettings, *, workers: int = 1
) -> list[Manifest]:
    """Link the shards that params.yaml files name below `root`; seal a manifest for each of them.

    Raises RecipeError for a params.yaml that can't be read, InputError for a folder that can't be
    found, StaleError where `out` holds something else. What is there already is not read again.
    """
    _check_places(root, out)
    read = {path: read_params.read(path) for path in settings.params}
    dirs = [line.data_dir for params in read.values() for line in params.train_input.mixture]
    placed = read_params.place(dirs, root, settings.maps)
    named = zip(_names(settings.params), read.values(), strict=True)
    phases = [_phase(name, params, placed, settings) for name, params in named]
    _tell_subsets(phases, settings)
    with naming(out), alone(out), Fanout(workers) as pool:
        folders = _link(root.resolve(), out, placed, settings, pool)
        msl = _msl(folders)
        drafts: dict[Path, Manifest] = {}
        previous = None
        for (path, params), phase in zip(read.items(), phases, strict=True):
            basis = _basis(root, out, path, params.train_input, settings, msl)
            draft = seal.compose(basis, phase, folders, previous)
            drafts[BuildFolder(out).manifest(phase.name)] = draft
            previous = draft.digest
        unsealed(drafts)
        store(out, drafts)
        sweep(out)
    return list(drafts.values())


def _check_places(root: Path, out: Path) -> None:
    if not root.is_dir():
        raise UsageError(f"{root}: is no folder; give the folder of the published shards")
    if out.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"--out {out}: lies in {root}, which is not to be touched; give another")
    built = [path for path in BuildFolder(out).sealed() if path.name != IMPORTED]
    if built or BuildFolder(out).tokenizer.exists():
        raise StaleError(f"{out}: holds a build of raw files; import into another --out")


def _names(params: Sequence[Path]) -> list[str]:
    """Return the phases' names: those of their files, or phase1, phase2, ... where they clash."""
    twice = next((path for path in params if params.count(path) > 1), None)
    if twice is not None or not params:
        raise UsageError(
            f"--params: must name one file a phase, got {f'{twice} twice' if twice else 'none'}"
        )
    names = [path.stem for path in params]
    if len(set(names)) == len(names) and all(NAME.fullmatch(name) for name in names):
        return names
    return [f"phase{number + 1}" for number in range(len(names))]


def _phase(name: str, params: ZooParams, placed: Placed, settings: ImportSettings) -> Phase:
    """Return a phase as published: nothing is refused for repeating, it has happened."""
    section = params.train_input
    zero = next((line.data_dir for line in section.mixture if line.weight == 0), None)
    if zero is not None and settings.zeros == "aligned":
        raise RecipeError(
            f"phase {name}: {zero} has weight 0, after which Model Zoo 1.9 takes "
            "the lengths of other parts; take the line out, or reproduce that: --zeros misaligned"
        )
    try:
        parts = tuple(
            Part(
                placed[line.data_dir][0],
                weight=line.weight,
                subset=line.subset,
                max_epochs=float("inf"),
            )
            for line in section.mixture
        )
        order = ZooSettings(section.shuffle_seed, settings.subset, settings.zeros)
        steps = params.runconfig.max_steps
        for key, value in (("steps", steps), ("batch", section.batch_size)):
            if value < 1:
                raise ValueError(f"{key}: must be positive, got {value}")
        return Phase(section.batch_size, parts, steps, True, order, max_shared=1.0, name=name)
    except ValueError as error:
        raise RecipeError(f"phase {name}: {error}") from None


def _tell_subsets(phases: Sequence[Phase], settings: ImportSettings) -> None:
    if settings.subset == "2.0.3" and any(p.subset for phase in phases for p in phase.parts):
        logging.getLogger("crystalmix").warning("%s", SUBSETS)


def _basis(
    root: Path, out: Path, path: Path, section: TrainInput, settings: ImportSettings, msl: int
) -> Basis:
    params = {"name": path.name, "sha256": sha256(path.read_bytes()).hexdigest()}
    imported: Json = {"params": params, "digests": ROWS if settings.digests else SIZES}
    tokenizer = TokenizerIdentity(section.vocab_size)
    return Basis(root.resolve().name, section.shuffle_seed, msl, tokenizer, out, imported)


def _msl(folders: dict[str, Folder]) -> int:
    """Return the length of all rows; RefusalError if they differ."""
    lengths = {
        entry["msl"]: folder.path / entry["name"]
        for folder in folders.values()
        for entry in folder.sealed.files
    }
    if len(lengths) > 1:
        text = " and ".join(f"{msl} tokens ({path})" for msl, path in list(lengths.items())[:2])
        raise RefusalError(f"rows have different lengths, {text}; no phase can mix them")
    return next(iter(lengths))


def _link(
    root: Path, out: Path, placed: Placed, settings: ImportSettings, pool: Fanout
) -> dict[str, Folder]:
    """Link and measure the shards of every domain; return the domains' sealed folders."""
    files_of = dict(placed.values())
    folders: dict[str, Folder] = {}
    items: list[Measure] = []
    for name, files in files_of.items():
        places = [_place(root, file) for file in files]
        recipe = {
            "stage": IMPORT,
            "version": VERSION,
            "settings": {"digests": ROWS if settings.digests else SIZES, "files": places},
            "seed": None,
            "inputs": {},
        }
        path = BuildFolder(out).imported(name)
        folders[name] = folder = Folder(name, Domain((name,)), 0, path, recipe)
        if folder.receipt is not None:
            _check_links(path, files)
            continue
        _make_links(path, files)
        items += [
            Measure(folder.mark, file, place, settings.digests, path / f"{file.name}.done")
            for file, place in zip(files, places, strict=True)
        ]
    results = pool.map(measure, items, "import") if items else iter(())
    for name, folder in folders.items():
        if folder.receipt is None:
            own = [{"files": [next(results) for _ in files_of[name]]}]
            folder.seal(own, ImportAccount(rows=rows_in(own)))
    return folders


def _place(root: Path, file: Path) -> str:
    """Return a shard's path below the imported folder, that of the file itself if it is a link."""
    real = file.resolve()
    return real.relative_to(root).as_posix() if real.is_relative_to(root) else real.name


def _make_links(folder: Path, files: Collection[Path]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.h5"):
        path.unlink()
    for file in files:
        (folder / file.name).symlink_to(file.resolve())


def _check_links(folder: Path, files: Collection[Path]) -> None:
    for file in files:
        if (folder / file.name).resolve() != file.resolve():
            raise StaleError(
                f"{folder / file.name}: links to another file than {file}; "
                "import into another --out or remove this folder"
            )


def measure(item: Measure) -> Json:
    """Do a Measure; the result is the shard's entry in the receipt."""
    file = item.file.resolve()
    stat = file.stat()
    key = [item.mark, item.place, stat.st_size, stat.st_mtime_ns]
    return receipts.once(item.done, key, lambda: _measure(item))


def _measure(item: Measure) -> Json:
    rows, msl = shards.shape(item.file)
    size = item.file.stat().st_size
    entry: Json = {"name": item.file.name, "rows": rows, "msl": msl, "bytes": size}
    if not item.digests:
        identity = receipts.digest([item.place, rows, msl, size])
        return {**entry, "digest": identity, "rows_sum": None, "xxh3": None, "loss_tokens": None}
    counts = accounts.recount_shard(Check(item.file, None, None))
    return {
        **entry,
        "digest": counts.digest,
        "loss_tokens": counts.loss_tokens,
        "rows_sum": counts.rows_sum % 2**64,
        "xxh3": file_digest(item.file),
    }
