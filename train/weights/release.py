"""A release of a run: every kept checkpoint as a revision, and all that proves how it was trained.

    README.md                             card: phases, revisions, mixtures, how to verify
    release.json                          the revisions: step, tokens, data position, digests
    SHA256SUMS                            of every other file; written last
    run/<phase>/                          ledger, metrics, evaluations, seals; no weights
    build/phases/<phase>/manifest.json    what was planned; build/tokenizer.json
    build/README.md                       card of the data: sources, domains, shares, licences
    revisions/<phase>-step-00000300/      weights as `export` writes them

`sha256sum -c SHA256SUMS` needs nothing of ours; `crystalmix verify DIR` also holds the ledger to
the manifests, and the weights to the checkpoints that the ledger was sealed with.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copy2

from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest, read_manifests
from crystalmix.prep.runtime.atomic_files import canonical, file_sha256, read_json, replacing_folder
from crystalmix.prep.runtime.errors import DamageError, InputError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.model.crystal import Crystal, ModelSettings
from crystalmix.train.record import run_folder
from crystalmix.train.record.run_folder import PhaseFolder
from crystalmix.train.trainer import checkpoint
from crystalmix.train.weights import hf_export, hf_import
from crystalmix.train.weights.hf_export import PROVENANCE, ExportSettings
from crystalmix.train.weights.hf_names import from_huggingface

RELEASE, SUMS, CARD = "release.json", "SHA256SUMS", "README.md"
RUN, BUILD, REVISIONS = "run", "build", "revisions"
FORMAT = 1


@dataclass(frozen=True)
class Revision:
    """One checkpoint as it is released.

    step: steps done of its phase. tokens: trained on so far, all phases. position: rows consumed of
    its phase, so that the next row is at this position. weights: digest of all parameters.
    """

    name: str
    phase: str
    step: int
    tokens: int
    position: int
    manifest: str
    weights: str | None
    dtype: str


@dataclass(frozen=True)
class Released:
    """A release: its revisions in the order of training, files and bytes."""

    path: Path
    revisions: tuple[Revision, ...]
    files: int
    bytes: int


def release(
    run: Path, out: Path, build: Path | None, settings: ExportSettings, data_card: str
) -> Released:
    """Write a run's release to the folder `out`, whole or not at all.

    data_card: text of the card of its build. Raises InputError where `out` holds something or the
    run has no checkpoint of ours, DamageError for a checkpoint that is not what it was.
    """
    build = run_folder.build_of(run, build)
    phases = _phases(run, build)
    with replacing_folder(out) as place:
        revisions: list[Revision] = []
        before = 0
        for manifest, folder in phases:
            checkpoints = run_folder.checkpoints(folder.checkpoints)
            for source in checkpoints:
                revision = _revision(manifest, source, before, settings)
                hf_export.export(source, place / REVISIONS / revision.name, settings, build)
                revisions.append(revision)
            _copy_phase(folder, place / RUN / folder.name, checkpoints)
            before += run_folder.read_state(checkpoints[-1]).step * manifest.batch * manifest.msl
        _copy_rest(run, build, place, [manifest for manifest, _ in phases])
        content = {"format": FORMAT, "revisions": [asdict(revision) for revision in revisions]}
        (place / RELEASE).write_bytes(canonical(content))
        card = _card(run.resolve().name, revisions, [manifest for manifest, _ in phases])
        (place / CARD).write_text(card, "utf-8")
        (place / BUILD / CARD).write_text(data_card, "utf-8")
        sums = {name: file_sha256(place / name) for name in _names(place)}
        lines = [f"{digest}  {name}\n" for name, digest in sums.items()]
        (place / SUMS).write_text("".join(lines), "utf-8")
    return read(out)


def read(path: Path) -> Released:
    """Read which revisions a release has."""
    content = read_json(path / RELEASE, "get the release again")
    try:
        revisions = tuple(Revision(**entry) for entry in content["revisions"])
    except (KeyError, TypeError) as error:
        raise DamageError(f"{path / RELEASE}: is no release ({error}); get it again") from None
    sizes = [(path / name).stat().st_size for name in [*_names(path), SUMS]]
    return Released(path, revisions, len(sizes), sum(sizes))


def faults(path: Path) -> list[str]:
    """Return a line for each file that is not what it was, and for weights of another checkpoint.

    Weights in bfloat16 are held by their file's checksum alone: the digest is of float32.
    """
    lines = _wrong_sums(path)
    for revision in read(path).revisions:
        folder = path / REVISIONS / revision.name
        origin = read_json(folder / PROVENANCE, "get the release again")
        state = run_folder.read_state(
            PhaseFolder(path / RUN / revision.phase).checkpoint(revision.step)
        )
        sealed = (state.manifest, state.weights)
        if (revision.manifest, revision.weights) != sealed or origin["weights"] != state.weights:
            lines.append(f"{folder}: is not told as the checkpoint that the ledger was sealed with")
        elif revision.dtype == "float32" and _weights(folder, origin) != state.weights:
            lines.append(f"{folder}: its weights are not those of step {revision.step}")
    return lines


def _phases(run: Path, build: Path) -> list[tuple[Manifest, PhaseFolder]]:
    """Return the phases that have checkpoints, in the order of training."""
    folders = {phase.name: phase for phase in run_folder.phases(run) if phase.newest is not None}
    phases = [(m, folders[m.phase]) for m in read_manifests(build) if m.phase in folders]
    if not phases:
        raise InputError(f"{run}: holds no checkpoint of a phase of {build}; train first")
    for _, folder in phases:
        if (newest := folder.newest) is not None and run_folder.read_state(newest).model is None:
            raise InputError(f"{newest}: has no weights of ours; release a run that `train` wrote")
    return phases


def _revision(manifest: Manifest, source: Path, before: int, settings: ExportSettings) -> Revision:
    state = run_folder.read_state(source)
    return Revision(
        name=f"{manifest.phase}-{source.name}",
        phase=manifest.phase,
        step=state.step,
        tokens=before + state.step * manifest.batch * manifest.msl,
        position=state.step * manifest.batch,
        manifest=manifest.digest,
        weights=state.weights,
        dtype=settings.dtype,
    )


def _copy_phase(folder: PhaseFolder, out: Path, checkpoints: list[Path]) -> None:
    """Copy a phase's records; of its checkpoints the state files, without the weights."""
    lines = (folder.metrics, folder.evaluation, folder.samples, folder.tasks)
    files = [folder.claim, folder.skips, folder.seal, *lines]
    files += [*folder.ledger.glob("*.parquet"), *(path / run_folder.STATE for path in checkpoints)]
    for path in files:
        if path.exists():
            place = out / path.relative_to(folder.path)
            place.parent.mkdir(parents=True, exist_ok=True)
            copy2(path, place)


def _copy_rest(run: Path, build: Path, place: Path, manifests: list[Manifest]) -> None:
    """Copy manifests and tokenizer, and what the run says of itself as a whole."""
    source, out = BuildFolder(build), BuildFolder(place / BUILD)
    pairs = [(source.manifest(m.phase), out.manifest(m.phase)) for m in manifests]
    pairs.append((source.tokenizer, out.tokenizer))
    pairs.append((run / run_folder.PHASES, place / RUN / run_folder.PHASES))
    for path, copy in pairs:
        if path.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy2(path, copy)
    run_folder.remember(place / RUN, place / BUILD)


def _names(path: Path) -> list[str]:
    """Return the files of a release but its sums, sorted."""
    files = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    return sorted(name for name in files if name != SUMS)


def _wrong_sums(path: Path) -> list[str]:
    lines: list[str] = []
    sums: dict[str, str] = {}
    for line in (path / SUMS).read_text("utf-8").splitlines():
        digest, _, name = line.partition("  ")
        sums[name] = digest
    names = set(_names(path))
    lines += [f"{path / name}: is missing; get it again" for name in sorted(sums.keys() - names)]
    lines += [f"{path / name}: is not of the release" for name in sorted(names - sums.keys())]
    lines += [
        f"{path / name}: its bytes changed since it was released; get it again"
        for name in sorted(names & sums.keys())
        if file_sha256(path / name) != sums[name]
    ]
    return lines


def _weights(folder: Path, origin: Json) -> str | None:
    """Return the digest of a revision's weights as our model has them."""
    model = Crystal(ModelSettings(**origin["model"]))
    model.load_state_dict(from_huggingface(hf_import.read_tensors(folder)))
    return checkpoint.weights_digest(model)


def _card(name: str, revisions: list[Revision], manifests: list[Manifest]) -> str:
    """Return the card: what is here, what it was trained on, how to verify it."""
    columns = ("revision", "phase", "step", "tokens", "data position", "weights")
    rows = [(r.name, r.phase, r.step, r.tokens, r.position, str(r.weights)[:12]) for r in revisions]
    lines = [
        "---",
        "library_name: transformers",
        "tags: [crystalmix]",
        "---",
        "",
        f"# {name}",
        "",
        "Every kept checkpoint is a folder below `revisions`, which transformers loads with",
        "`trust_remote_code=True`. The data position is the row of the phase that comes next.",
        "",
        *_markdown(columns, rows),
        "",
        "## Data",
        "",
    ]
    for manifest in manifests:
        parts = [
            (p.name, f"{p.asked:.4f}", f"{p.got:.4f}", p.rows, p.tokens, f"{p.epochs:.2f}")
            for p in manifest.parts
        ]
        lines += [
            f"Phase `{manifest.phase}`: {manifest.steps:,} steps of {manifest.batch} rows of "
            f"{manifest.msl} tokens, manifest `{manifest.digest[:12]}`.",
            "",
            *_markdown(("part", "asked", "got", "rows", "tokens", "epochs"), parts),
            "",
        ]
    lines += [
        "## Verify",
        "",
        "`sha256sum -c SHA256SUMS` holds every file to its checksum. `crystalmix verify .` also",
        "holds the ledger of every step to the manifests, and the weights to the checkpoints that",
        "the ledger was sealed with.",
        "",
    ]
    return "\n".join(lines)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(map(str, row))} |" for row in cells]
