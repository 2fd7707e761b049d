"""Check of what a build was before: the states of its history, which are builds of links.

Their rows are those of the store, which the build's own check reads where it still names them; of
a state its manifests, seals and tokenizer are read.
"""

from collections.abc import Callable, Iterator

from crystalmix.mixtures.build.view import state_of
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.manifest import read_manifests, read_phase_set
from crystalmix.mixtures.verify import receipt_marks, tokenizer_check
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import CrystalmixError

REMEDY = "restore it: runs that were trained on that state rest on it"


def faults(build: BuildFolder, note: Callable[[str], None]) -> Iterator[str]:
    """Yield where a state's manifests, seals, receipts or tokenizer are not as they were kept.

    note: takes lines about what is not read of them.
    """
    if build.within is not None:
        return  # the build that it is of has these states
    for state in build.states():
        try:
            yield from _faults(build, state, note)
        except (CrystalmixError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            yield f"{state.path}: can't be checked ({' '.join(str(error).split())}); {REMEDY}"


def _faults(build: BuildFolder, state: BuildFolder, note: Callable[[str], None]) -> Iterator[str]:
    manifests = read_manifests(state.path)
    sealed, here = read_phase_set(state), {m.phase: m.digest for m in manifests}
    if sealed not in ({}, here):
        yield f"{state.phase_set}: does not name the phases that are there; {REMEDY}"
    if state_of(state) != state.path.name:
        yield f"{state.path}: holds other phases than it was named by; {REMEDY}"
    for folder in state.sealed():
        receipts.read(folder)
    yield from receipt_marks.faults(state, (), note)
    kept, now = state.tokenizer, build.tokenizer
    if kept.exists() and not (now.exists() and kept.read_bytes() == now.read_bytes()):
        yield from tokenizer_check.faults(kept, {m.phase: m for m in manifests})
