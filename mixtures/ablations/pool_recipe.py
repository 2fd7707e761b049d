"""Pooling: the recipe of the rows that all proxies of an ablation share.

Each domain is packed anew with short rows and a small tokenizer, a share of its documents is held
out, and there is a variant of it for each FIM rate that is asked. FIM is row by row, for rows so
short hold few whole documents, and what a middle stands between must be in its row.

A stratified pool packs each source of a domain apart. Documents are of very different sizes, so
that a share of them held out may be of other sources than the rows that are trained on.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from crystalmix.mixtures.ablations.spec import (
    HELD,
    HELD_OUT,
    HELD_SHARE,
    INFILL,
    POOL,
    STRATUM,
    Ablation,
    fim_domain,
)
from crystalmix.mixtures.recipes.phase import Part, Phase
from crystalmix.mixtures.recipes.recipe import Domain, Recipe
from crystalmix.prep.fim.document_fim import FimSettings
from crystalmix.prep.tokenizer.tokenizer import TokenizerSettings


def proxy_recipe(spec: Ablation, recipe: Recipe, tokenizer: Path | None) -> Recipe:
    """Return the recipe of what all proxies share: phases POOL and HELD_OUT over each domain.

    tokenizer: of the proxies, where they have one of their own.
    """
    domains: dict[str, Domain] = {}
    for name in spec.domains:
        # one pass without fresh FIM cuts: a proxy sees a small part of a domain
        trained = replace(
            recipe.domains[name], split="train", tokens=None, shuffle=True, epochs=1, rows=None
        )
        domains |= _strata(spec, name, trained)
        domains |= _strata(spec, name + HELD, Domain(trained.sources, split="valid"))
        for rate in _rates(spec, name):
            fim = FimSettings(rate, level="row") if rate else None
            domains |= _strata(spec, fim_domain(name, rate), replace(trained, fim=fim))
        if name in spec.infilled:
            middles = FimSettings(1.0, level="row", loss="middle")
            infilled = Domain(trained.sources, split="valid", fim=middles)
            domains |= _strata(spec, name + HELD + INFILL, infilled)
    held = [name for name, domain in domains.items() if domain.split == "valid"]
    held.sort(key=lambda name: INFILL in name)  # last
    trained = [name for name in domains if name not in held]
    phases = {POOL: _everything(POOL, trained), HELD_OUT: _everything(HELD_OUT, held)}
    drawn = {source for domain in domains.values() for source in domain.sources}
    sources = {name: one for name, one in recipe.sources.items() if name in drawn}
    settings = recipe.tokenizer
    if tokenizer is not None:  # which has none of the tokens that metadata or names may ask for
        settings = TokenizerSettings(str(tokenizer))
        sources = {name: replace(one, metadata=()) for name, one in sources.items()}
    own: dict[str, Any] = {"cerebras": None, "documents": "open"}  # proxies attend over whole rows
    rows = replace(recipe.rows, msl=spec.proxy.msl, rows_per_shard=1024, **own)
    made = replace(
        recipe,
        name=spec.name,
        tokenizer=settings,
        sources=sources,
        domains=domains,
        phases=phases,
        rows=rows,
        valid=recipe.valid or spec.held_out or HELD_SHARE,
    )
    object.__setattr__(made, "file", recipe.file)
    return made


def _strata(spec: Ablation, name: str, domain: Domain) -> dict[str, Domain]:
    """Return a domain under its name, or each of its sources apart in a stratified pool."""
    if not spec.proxy.stratified or len(domain.sources) == 1:
        return {name: domain}
    return {f"{name}{STRATUM}{one}": replace(domain, sources=(one,)) for one in domain.sources}


def _rates(spec: Ablation, name: str) -> tuple[float, ...]:
    return spec.factors.permuted if spec.domains[name].kind == "code" else ()


def _everything(name: str, domains: list[str]) -> Phase:
    parts = tuple(Part(domain, epochs=1.0) for domain in domains)
    # variants of a domain with other FIM rates are of the same texts; no run draws from two of them
    return Phase(batch=1, parts=parts, max_shared=1.0, name=name)
