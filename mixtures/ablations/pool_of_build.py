"""Reusing: the pool of an ablation from the sealed rows of a build, as they lie.

Nothing is packed anew, nothing is written in the build. Of each domain the pool takes the part that
has most rows, of any phase; its losses are measured on rows of the same sources on the other side
of the recipe's split (`valid`). What the proxies see as their build are links, and two manifests.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cached_property
from os.path import relpath
from pathlib import Path

from crystalmix.mixtures.ablations.spec import HELD, HELD_OUT, POOL, Ablation
from crystalmix.mixtures.build.build import store
from crystalmix.mixtures.build.seal import settings_of
from crystalmix.mixtures.build.view import lasting
from crystalmix.mixtures.manifest.build_folder import (
    DOMAINS,
    SOURCES,
    TOKENIZER,
    BuildFolder,
    rows_files,
)
from crystalmix.mixtures.manifest.exact_order import VERSION, integer_weights
from crystalmix.mixtures.manifest.manifest import (
    Manifest,
    ManifestPart,
    budgeted,
    read_manifests,
    sealed,
)
from crystalmix.mixtures.recipes.phase import shares
from crystalmix.mixtures.recipes.recipe import Recipe
from crystalmix.prep.runtime import receipts, yaml_settings
from crystalmix.prep.runtime.errors import DamageError, RecipeError, RefusalError, StaleError
from crystalmix.prep.runtime.receipts import Shard
from crystalmix.prep.runtime.types import Json

LINKED = (DOMAINS, SOURCES, TOKENIZER)


@dataclass(frozen=True)
class Reused:
    """What an ablation takes of a build: its folder, phases POOL and HELD_OUT, and notes."""

    build: Path
    pool: Manifest
    held_out: Manifest
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Drawn:
    """A part of a phase of the build."""

    manifest: Manifest
    part: ManifestPart


def reuse(file: Path, spec: Ablation, recipe: Recipe) -> Reused:
    """Put an ablation's pool together from the build that its spec names; write nothing.

    file: the spec's, which `build` is relative to. Raises RecipeError with its line for a value
    that does not go with the build, RefusalError for what the build can't give, and DamageError for
    shards that are not as the build's manifests say.
    """
    base = _Base(file, spec, recipe)
    drawn = {name: base.drawn(name) for name in spec.domains}
    held = {name: base.held_out(name, one) for name, one in drawn.items()}
    base.check_alike([*drawn.values(), *held.values()])
    for one in (*drawn.values(), *held.values()):
        _check_shards(base.path, one.part)
    if not (tokenizer := BuildFolder(base.path).tokenizer).exists():
        raise DamageError(f"{tokenizer}: is missing; restore the build's tokenizer")
    pool = _everything(spec.name, POOL, drawn, None)
    measured = {name + HELD: one for name, one in held.items()}
    held_out = _everything(spec.name, HELD_OUT, measured, pool.digest)
    notes = [line for name in drawn for line in base.notes(name, drawn[name], held[name])]
    return Reused(base.path, pool, held_out, tuple(notes))


def view(build: Path, sealed: Sequence[Manifest], place: Path) -> None:
    """Make `place` a view of a build as it is now: links to its folders, and manifests of its own.

    Raises StaleError where something else than such a view lies there.
    """
    place.mkdir(parents=True, exist_ok=True)
    build = lasting(BuildFolder(build)).path
    for name in LINKED:
        link, target = place / name, build / name
        if link.is_symlink():
            if link.resolve() == target.resolve():
                continue
            link.unlink()  # the build has moved: its digests, which were compared, are the same
        elif link.exists():
            raise StaleError(f"{link}: is no link to a build's; take another --out")
        if target.exists():
            link.symlink_to(relpath(target, place))
    store(place, {BuildFolder(place).manifest(m.phase): m for m in sealed})


@dataclass(frozen=True)
class _Base:
    """The build that a spec stands on."""

    file: Path
    spec: Ablation
    recipe: Recipe

    @cached_property
    def path(self) -> Path:
        """The build's folder, absolute; RecipeError where nothing is sealed there."""
        path = (self.file.parent / (self.spec.build or "")).resolve()
        if not BuildFolder(path).manifests():
            fault = "holds no sealed phase" if path.exists() else "is not there"
            raise self.fault(f"{path} {fault}; give the --out of `crystalmix build`", "build")
        return path

    @cached_property
    def every(self) -> tuple[_Drawn, ...]:
        """All parts of all phases, in the order of the phases."""
        return tuple(_Drawn(m, part) for m in read_manifests(self.path) for part in m.parts)

    def fault(self, message: str, *steps: str) -> RecipeError:
        """Return an error about a value of the spec, with its line."""
        line = yaml_settings.line_of(yaml_settings.load(self.file), steps)
        return RecipeError(f"{self.file}:{line}: {'.'.join(steps)}: {message}")

    @cached_property
    def packed(self) -> dict[str, Json]:
        """What each domain was packed with; nothing where it was imported."""
        domains = dict.fromkeys(one.part.domain for one in self.every)
        return {domain: settings_of(BuildFolder(self.path), domain) or {} for domain in domains}

    def drawn(self, name: str) -> _Drawn:
        """Return the largest part of a domain to train on."""
        there = [one for one in self.every if self._side(one.part.domain) != "valid"]
        parts = [one for one in there if one.part.domain == name]
        if not parts:
            known = ", ".join(dict.fromkeys(one.part.domain for one in there))
            fault = f"no phase of {self.path} holds it (there are {known})"
            raise self.fault(f"{fault}; build one that does, or leave it out", "domains", name)
        wanted, made = self.recipe.domains[name].sources, self.packed[name].get("sources")
        if made is not None and set(made) != set(wanted):
            raise RefusalError(
                f"domain {name}: {self.path} drew it from {', '.join(made)}, {self.recipe.file} "
                f"draws it from {', '.join(wanted)}; name the recipe of that build, or drop `build`"
            )
        return _largest(parts)

    def held_out(self, name: str, drawn: _Drawn) -> _Drawn:
        """Return the largest part of the held-out documents of a domain's sources."""
        own = self.packed[name]
        if drawn.manifest.imported is not None:
            raise RefusalError(
                f"domain {name}: {self.path} was imported, and nobody knows which texts its rows "
                "have: none can be held out; drop `build`"
            )
        split = own.get("split") or {}  # of one seed and share, so that no text is on both sides
        parts = [
            one
            for one in self.every
            if self._side(one.part.domain) == "valid"
            and self.packed[one.part.domain].get("split") == {**split, "side": "valid"}
            and set(self.packed[one.part.domain]["sources"]) == set(own["sources"])
        ]
        if not parts:
            raise RefusalError(
                f"domain {name}: {self.path} has no validation rows of it; give the recipe "
                f"`valid:`, {name} `split: train` and a domain of the same sources `split: valid` "
                "in a phase, and build that, or drop `build`"
            )
        return _largest(parts)

    def check_alike(self, drawn: list[_Drawn]) -> None:
        """Refuse rows of another length than the spec's, and phases that were built otherwise."""
        for one in drawn:
            if one.manifest.msl != self.spec.proxy.msl:
                fault = f"must be {one.manifest.msl}, as the rows of {self.path}"
                raise self.fault(f"{fault}, got {self.spec.proxy.msl}", "proxy", "msl")
        kinds: set[str] = set()
        for one in drawn:
            split = {**self.packed[one.part.domain]["split"], "side": None}
            kinds.add(receipts.digest([one.manifest.seed, asdict(one.manifest.tokenizer), split]))
        if len(kinds) > 1:
            raise RefusalError(
                f"{self.path}: its domains were built with several seeds, splits or tokenizers; "
                "no pool can mix them"
            )

    def notes(self, name: str, drawn: _Drawn, held: _Drawn) -> Iterator[str]:
        """Tell what of a domain is otherwise than where rows are packed for an ablation."""
        part = drawn.part
        if part.variants > 1 or part.fim is not None or part.upsampling is not None:
            yield f"domain {name}: its rows hold {_made(part)}; they are taken as they lie"
        if held.part.fim is not None:
            yield f"domain {name}: its held-out rows hold {_made(held.part)}"
        receipt = receipts.read((self.path / part.shards[0].path).parent)
        rows = sum(shard.rows for shard in rows_files(receipt))
        if part.available < rows:
            yield (
                f"domain {name}: part {part.name} of phase {drawn.manifest.phase} has "
                f"{part.available:,} of its {rows:,} rows; no others are read or counted"
            )
        if receipt.stage != "shuffle":
            yield f"domain {name}: its rows are not shuffled; proxies read the first ones"

    def _side(self, domain: str) -> str | None:
        """Return the side of the recipe's split that a domain has; a whole one is for `valid`."""
        settings = self.packed[domain]
        return "valid" if settings.get("held_out") else (settings.get("split") or {}).get("side")


def _largest(parts: list[_Drawn]) -> _Drawn:
    return max(parts, key=lambda one: one.part.available)  # of equal ones the first


def _made(part: ManifestPart) -> str:
    epochs = f"{part.variants} epochs" if part.variants > 1 else "one epoch"
    if part.upsampling is not None:
        epochs = f"documents up to {part.variants} times, by {part.upsampling['by']}"
    return epochs if part.fim is None else f"{epochs} with FIM at a rate of {part.fim['rate']:g}"


def _everything(
    name: str, phase: str, drawn: Mapping[str, _Drawn], previous: str | None
) -> Manifest:
    """Seal a phase of one epoch of each part, one row a step; drawn: by the parts' new names."""
    whole: Json = {"budget": {"epochs": 1.0}, "start": 0}
    found = [replace(one.part, name=new, **whole) for new, one in drawn.items()]
    weights = integer_weights([Fraction(part.available) for part in found])
    targets = shares("epochs", [1.0] * len(found), weights)
    rows = sum(part.available for part in found)
    first = next(iter(drawn.values())).manifest
    draft = replace(
        first,
        name=name,
        phase=phase,
        steps=rows,
        batch=1,
        order_version=VERSION,
        cerebras=None,
        parts=tuple(
            replace(part, asked=share, weight=weight)
            for part, share, weight in zip(found, targets, weights, strict=True)
        ),
        previous=previous,
        after=None,
        digest="",
    )
    counts = draft.order.counts(rows)
    parts = tuple(
        budgeted(part, count, rows, draft.msl)
        for part, count in zip(draft.parts, counts, strict=True)
    )
    return sealed(replace(draft, parts=parts))


def _check_shards(build: Path, part: ManifestPart) -> None:
    """Hold a part's shards against the receipts of their folders, and their files' sizes."""
    entries: dict[Path, Shard] = {}
    for folder in {(build / shard.path).parent for shard in part.shards}:
        entries |= {folder / entry.name: entry for entry in rows_files(receipts.read(folder))}
    for shard in part.shards:
        path = build / shard.path
        entry = entries.get(path)
        size = path.stat().st_size if path.exists() else None
        if entry is None or (entry.digest, entry.bytes) != (shard.digest, size):
            raise DamageError(
                f"{path}: is not as the manifests of its build say; run `crystalmix verify` there, "
                "and restore it or build again"
            )
