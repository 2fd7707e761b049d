"""Trials: the swarm under the real run's caps, checks of other draws, factors at equal totals."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest

from crystalmix.mixtures.ablations import factor_trials as crossed
from crystalmix.mixtures.ablations import spec as ablation
from crystalmix.mixtures.ablations import trials
from crystalmix.mixtures.ablations.small_manifest import Window, remix
from crystalmix.mixtures.ablations.spec import Ablation, Factors, Group
from crystalmix.mixtures.ablations.trials import Ground, Trial
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.manifest import Manifest
from helpers.ablations import tiny, write_spec


@lru_cache(maxsize=1)
def pool() -> Manifest:
    return manifests.read(tiny() / "build" / "phases" / "pool")


@lru_cache(maxsize=1)
def spec() -> Ablation:
    return ablation.load(str(write_spec(Path(mkdtemp()))))[0]


def ground(**changes: object) -> Ground:
    return Ground(replace(spec(), **changes), pool())  # pyright: ignore[reportArgumentType]


def consumed(trial: Trial) -> dict[str, int]:
    """Count the rows that a trial's manifests consume of each domain."""
    rows: dict[str, int] = {}
    for portion in trial.portions:
        for part in remix(pool(), portion).parts:
            rows[part.domain] = rows.get(part.domain, 0) + part.rows
    return rows


def factors(**asked: object) -> list[Trial]:
    settings = {"seeds": 1, **asked}
    return crossed.factors(ground(factors=Factors(**settings)))  # pyright: ignore[reportArgumentType]


def test_the_design_has_the_centre_first_and_repeats_it_under_draws_of_its_own() -> None:
    told = trials.design(ground())
    roles = [trial.role for trial in told]
    assert roles == ["centre", *["design"] * 6, *["replicate"] * 2, *["anchor"] * 2]
    assert [trial.draw for trial in told] == [0] * 7 + [1, 2, 1, 2]
    assert [trial.seed for trial in told] == [1] * 7 + [2, 3, 2, 3]
    assert told[7].shares == told[0].shares
    assert told[9].shares == told[10].shares != told[0].shares
    assert told[9].shares in [trial.shares for trial in told[1:7]]


def test_shares_stay_within_what_the_real_run_may_repeat() -> None:
    domains = {"wiki": Group("language", 1.0), "python": Group(), "javascript": Group()}
    made = ground(domains=domains)
    for trial in trials.design(made):
        for name, share in trial.shares.items():
            assert share <= made.caps[name] + 1e-9
            assert share * made.target <= made.tokens[name] * made.epochs[name] * 1.001


def test_a_proxy_repeats_a_domain_as_often_as_the_real_run() -> None:
    made = ground()
    [centre, *_] = trials.design(made)
    manifest = remix(pool(), centre.portions[0])
    for part in manifest.parts:
        real = centre.shares[part.domain] * made.target / made.tokens[part.domain]
        assert part.epochs == pytest.approx(real, rel=0.1)


def test_unmatched_proxies_draw_from_all_rows() -> None:
    made = ground(proxy=replace(spec().proxy, matched=False))
    assert {n: w.last for n, w in made.windows().items()} == made.rows


def test_draws_are_of_about_the_same_rows_in_another_order() -> None:
    made = ground(proxy=replace(spec().proxy, steps=10))
    first, second = (trials.design(made)[i].portions[0] for i in (0, 7))
    read = [remix(pool(), portion) for portion in (first, second)]
    for one, other in zip(read[0].parts, read[1].parts, strict=True):
        assert one.available == other.available
        assert one.digest != other.digest


def test_draws_are_of_other_rows_in_every_source_of_a_domain() -> None:
    first, *code = pool().parts
    more = [replace(part, domain=f"code.from-{part.domain}") for part in code]
    stratified = replace(pool(), parts=(first, *more))
    domains = {"wiki": Group("language"), "code": Group()}
    made = Ground(
        replace(spec(), domains=domains, proxy=replace(spec().proxy, steps=10)), stratified
    )
    assert made.rows == {"wiki": pool().parts[0].available, "code": sum(p.available for p in code)}
    portions = [made.single(trials.design(made)[0], draw).portions[0] for draw in range(4)]
    read = [remix(stratified, portion).parts for portion in portions]
    for parts in zip(*read, strict=True):
        assert len({part.digest for part in parts}) == 4


def test_declared_tokens_stand_for_more_than_there_are_and_this_is_told() -> None:
    domains = {**spec().domains, "python": Group(tokens=10**9)}
    made = ground(domains=domains)
    assert made.tokens["python"] == 10**9
    assert any(line.startswith("domain python: 60 rows are there") for line in made.notes())


def test_checks_are_of_draws_that_the_fit_has_not_seen() -> None:
    made = ground(checks=replace(spec().checks, seeds=2, sizes=("0.2M",)))
    mixtures = {"recommended": made.uniform, "uniform": made.uniform, "pareto": made.current}
    told = trials.checks(made, mixtures)
    assert {trial.draw for trial in told} == {3, 4}
    assert [trial.size for trial in told if trial.level == "recommended"] == ["tiny", "0.2M"] * 2
    assert {trial.size for trial in told if trial.level == "pareto"} == {"tiny"}
    assert len({trial.name for trial in told}) == len(told)


def test_orders_of_phases_consume_the_same_totals() -> None:
    told = factors(order=trials_orders(), seeds=1)
    counts = np.array([[consumed(trial)[name] for name in spec().domains] for trial in told])
    assert (np.abs(counts - counts[0]) <= 4).all(), counts
    assert {trial.level: len(trial.portions) for trial in told} == {
        "mixed": 2,
        "language-then-code": 2,
        "code-then-language": 2,
        "crystal": 2,
        "crystal-3": 3,
    }


def trials_orders() -> tuple[str, ...]:
    return ablation.ORDERS


def test_language_then_code_has_no_code_before_its_last_row_of_language() -> None:
    [trial] = factors(order=("language-then-code",))
    assert set(trial.portions[0].shares) == {"wiki"}
    assert set(trial.portions[1].shares) == {"python", "javascript"}


def rows_of(trial: Trial, domain: str) -> list[int]:
    """Return how many rows of a domain each of a trial's manifests consumes."""
    return [
        sum(part.rows for part in remix(pool(), portion).parts if part.domain == domain)
        for portion in trial.portions
    ]


def test_crystals_phases_have_their_parts_of_language_and_code() -> None:
    two, three = factors(order=("crystal", "crystal-3"))
    wiki, python = rows_of(three, "wiki"), rows_of(three, "python")
    for rows, parts in ((wiki, (0.5, 0.4, 0.1)), (python, (0.0, 0.5, 0.5))):
        assert rows == pytest.approx([sum(rows) * part for part in parts], abs=2)
    wiki, python = rows_of(two, "wiki"), rows_of(two, "python")
    for rows, parts in ((wiki, (0.5, 0.5)), (python, (0.0, 1.0))):
        assert rows == pytest.approx([sum(rows) * part for part in parts], abs=2)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_share_of_replay_is_that_of_the_last_third(share: float) -> None:
    [trial] = factors(replay=(share,))
    last = {name: rows_of(trial, name)[1] for name in spec().domains}
    steps = [portion.steps for portion in trial.portions]
    assert sum(last.values()) == steps[1] * spec().proxy.batch
    assert last["wiki"] == pytest.approx(share * sum(last.values()), abs=2)
    assert last["python"] == pytest.approx(last["javascript"], abs=2)
    whole = steps[0] / sum(steps) * ground().uniform["wiki"] + steps[1] / sum(steps) * share
    assert trial.shares["wiki"] == pytest.approx(whole)
    assert sum(trial.shares.values()) == pytest.approx(1)


def test_replay_reads_rows_of_language_that_were_read_before() -> None:
    [trial] = factors(replay=(0.5,))
    first, last = (remix(pool(), portion) for portion in trial.portions)
    before, after = (
        {
            (shard, row)
            for shard, row, part in zip(refs.shard, refs.row, refs.part, strict=True)
            if manifest.parts[part].domain == "wiki"
        }
        for manifest in (first, last)
        for refs in [manifest.rows(0, manifest.steps * manifest.batch)]
    )
    names = [{(first.paths[s], r) for s, r in before}, {(last.paths[s], r) for s, r in after}]
    assert names[1]
    assert len(names[1] & names[0]) >= 0.8 * len(names[1])


def test_no_replay_leaves_language_out_of_the_last_third() -> None:
    [trial] = factors(replay=(0.0,))
    assert "wiki" not in trial.portions[1].shares
    assert trial.portions[1].steps == pytest.approx(spec().proxy.steps / 3, abs=1)


def test_each_draw_of_a_factor_has_a_seed_and_rows_of_its_own() -> None:
    told = factors(order=("mixed",), replay=(0.2,), epochs=(2,), repeated="python", seeds=2)
    assert [trial.factor for trial in told] == ["order", "replay", "epochs"] * 2
    assert [trial.seed - spec().proxy.seed for trial in told] == [0] * 3 + [1] * 3
    assert [trial.draw for trial in told] == [0] * 3 + [1] * 3
    assert len({trial.name for trial in told}) == 6
    for one, other in zip(told[:3], told[3:], strict=True):
        assert one.portions[0].windows["wiki"] != other.portions[0].windows["wiki"]


def test_each_draw_of_a_fim_rate_reads_other_rows_of_its_variant() -> None:
    rates = (0.0, 0.9)
    code = [part for part in pool().parts if part.domain != "wiki"]
    variants = [
        replace(part, domain=ablation.fim_domain(part.domain, rate))
        for rate in rates
        for part in code
    ]
    asked = replace(
        spec(),
        proxy=replace(spec().proxy, steps=2),
        factors=Factors(fim_rate=rates, seeds=2),
    )
    made = Ground(asked, replace(pool(), parts=(*pool().parts, *variants)))
    told = crossed.factors(made)
    assert [(trial.level, trial.draw) for trial in told] == [
        ("0", 0),
        ("0.9", 0),
        ("0", 1),
        ("0.9", 1),
    ]
    for one, other in zip(told[:2], told[2:], strict=True):
        for name in one.portions[0].shares:
            first, second = (trial.portions[0].windows[name] for trial in (one, other))
            assert first.last <= second.first or second.last <= first.first, name


def test_phases_go_on_where_the_one_before_ended_and_read_no_row_twice() -> None:
    proxy = replace(spec().proxy, steps=20, matched=False)  # fewer rows than there are
    made = ground(proxy=proxy, factors=Factors(order=ablation.ORDERS))
    for trial in crossed.factors(made):
        seen: list[tuple[str, int]] = []
        for portion in trial.portions:
            manifest = remix(pool(), portion)
            refs = manifest.rows(0, manifest.steps * manifest.batch)
            pairs = zip(refs.shard.tolist(), refs.row.tolist(), strict=True)
            seen += [(manifest.paths[shard], row) for shard, row in pairs]
        assert len(seen) == 80
        assert len({*seen}) == len(seen), trial.level


def test_a_run_of_more_rows_than_there_are_stays_within_them() -> None:
    """Domains are then gone through again and again; no window lies past the pool's rows."""
    made = ground(
        proxy=replace(spec().proxy, steps=400, matched=False),
        factors=Factors(order=ablation.ORDERS, replay=(0.5,), epochs=(1, 9), repeated="python"),
    )
    for trial in crossed.factors(made):
        for portion in trial.portions:
            for part in remix(pool(), portion).parts:  # refuses a window past the rows
                assert part.available <= made.rows[part.domain]
        if trial.level == "1":
            assert trial.portions[0].windows["python"] == Window(0, made.rows["python"])


def test_epochs_cut_one_domain_and_leave_the_others() -> None:
    told = factors(epochs=(1, 2, 4), repeated="python")
    epochs = [
        {part.domain: part.epochs for part in remix(pool(), trial.portions[0]).parts}
        for trial in told
    ]
    assert [one["python"] for one in epochs] == pytest.approx([1, 2, 4], rel=0.1)
    assert len({one["wiki"] for one in epochs}) == 1
