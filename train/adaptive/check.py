"""Check of windows: that each one's shares follow from its policy and the ledgers before it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from crystalmix.mixtures.manifest.manifest import read_manifests
from crystalmix.prep.runtime.errors import CrystalmixError
from crystalmix.train.adaptive import windows
from crystalmix.train.adaptive.policy import VERSION, Policy, Window
from crystalmix.train.record.run_folder import PhaseFolder


def faults(build: Path, run: Path) -> Iterator[str]:
    """Yield one line for each window that does not follow; none for a run without windows.

    build: the run's own. Shares, starts and steps are composed again from what the first window
    records of the phase that it stems from, and from the ledgers in `run`. Windows of a redacted
    build keep the shares of their origin, whatever a fork records: that run's ledgers gave them.
    """
    chain = [manifest for manifest in read_manifests(build) if manifest.adapted is not None]
    if not chain or _kept(build):
        return
    chain.sort(key=lambda manifest: manifest.adapted["window"])  # type: ignore[index]
    stem, seen = windows.stem_recorded(chain[0]), list[Window]()
    policy = _policy((chain[0].adapted or {})["policy"])
    if policy is None:
        yield f"{build}: {chain[0].phase}: has a policy of another version than {VERSION}"
        return
    for number, manifest in enumerate(chain):
        place = f"{build}: window {manifest.phase}"
        record: Any = manifest.adapted
        if number != record["window"]:
            yield f"{place}: is number {record['window']}, {number} windows lie before it"
            return
        if record["seen"] != (seen[-1].content() if seen else None):
            yield f"{place}: records other tokens or losses than the ledger of the window before"
        try:
            again = windows.compose(stem, policy, chain[:number], seen)
        except CrystalmixError as error:
            yield f"{place}: {error}"
            return
        if again.digest != manifest.digest:
            yield (
                f"{place}: its shares, rows or starts are not what policy {policy.policy} of the "
                "first window gives for the ledger before it"
            )
        ledger = PhaseFolder(run / manifest.phase).ledger
        if number + 1 < len(chain):
            try:
                seen.append(windows.recorded(manifest, ledger))
            except CrystalmixError as error:
                yield f"{place}: {error}"
                return


def summary(build: Path) -> str | None:
    """Return what was checked of a build's windows; None where it holds none."""
    number = sum(manifest.adapted is not None for manifest in read_manifests(build))
    if not number:
        return None
    if _kept(build):
        return f"{number} windows: their shares are those of the run whose build was redacted"
    return f"{number} windows: their shares follow from the ledgers before them"


def _kept(build: Path) -> bool:
    return any(manifest.redaction is not None for manifest in read_manifests(build))


def _policy(content: Any) -> Policy | None:  # noqa: ANN401  a manifest's record
    if not isinstance(content, dict) or content.get("version") != VERSION:
        return None
    try:
        return TypeAdapter(Policy).validate_python(
            {k: v for k, v in content.items() if k != "version"}
        )
    except ValidationError:
        return None
