"""Parts of a page that templates can't say: groups of numbers, scales, segments, commands."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import log10

from crystalmix.train.pages.refs import Ref

COLOURS = 12  # that the style has
MOST_RESULTS = 1_500  # of evaluations that are shown, about 1 MB
SECTIONS = {
    "summary": "Summary",
    "records": "Records",
    "mixture": "Mixture",
    "flow": "Flow",
    "repeats": "Repeats",
    "losses": "Loss",
    "evaluations": "Evaluations",
    "rows": "Rows",
    "certificate": "Certificate",
    "reproduce": "Commands",
}
OF_ABLATION = {
    "mixture": "Mixture",
    "laws": "Laws",
    "checks": "Checks",
    "factors": "Factors",
    "certificate": "Evidence",
    "reproduce": "Commands",
}


@dataclass(frozen=True)
class Shown:
    """A segment of a row as it is shown. edge: number of the piece that begins with it, else 0."""

    text: str
    tokens: int
    special: str
    role: str
    style: str
    edge: int
    title: str


class Accounts:
    """The accounts of a build's folders: documents of sources, rows of domains."""

    def __init__(self, build: Ref) -> None:
        every = list(build["accounts"]) if build and "accounts" in build else []
        self.sources = [account for account in every if "records" in account]
        self.folders = [account for account in every if "records" not in account]
        self.packed = [account for account in self.folders if "sources" in account]

    @property
    def reasons(self) -> list[tuple[str, list[Ref]]]:
        """Why records were dropped, with the counts of each source, the greatest reason first."""
        counts: dict[str, list[Ref]] = {}
        for account in self.sources:
            for reason, count in account["dropped"].members:
                if count.it:
                    counts.setdefault(reason, []).append(count)
        return sorted(counts.items(), key=lambda pair: -sum_of(pair[1]))

    @property
    def longest(self) -> int:
        """Tokens of the longest document."""
        lengths = (s["lengths"] for account in self.packed for _, s in account["sources"].members)
        return max((length["max"].it for length in lengths if length), default=1)


class Colours:
    """The colours of a page's parts and domains: a name has one colour all over the page."""

    def __init__(self, evidence: Ref) -> None:
        build = evidence["build"]
        parts = [p for m in (build["manifests"] if build else ()) for p in m["parts"]]
        names = [*(part["name"].it for part in parts), *(part["domain"].it for part in parts)]
        self.numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}

    def of(self, name: str) -> int:
        """Return the number of a name's colour, of COLOURS; other names come after these."""
        return self.numbers.setdefault(name, len(self.numbers)) % COLOURS


def sum_of(refs: Iterable[Ref]) -> float:
    """Return the sum of the numbers that are known."""
    return sum(ref.it for ref in refs if ref.it is not None)


def on_scale(value: float, longest: int) -> float:
    """Return the place of a length on a logarithmic scale from 1, per cent.

    >>> round(on_scale(10, 1000), 3)
    33.333
    """
    return 100 * log10(max(value, 1)) / max(log10(max(longest, 2)), 1e-9)


def evaluated(results: Iterable[Ref]) -> list[Ref]:
    """Return results of each phase's first step, its last, and as many between as MOST_RESULTS has.

    results: evaluations or tasks, each with its phase and step.
    """
    every = list(results)
    if len(every) <= MOST_RESULTS:
        return every
    steps: dict[str, list[int]] = {}
    for phase, step in sorted({(result["phase"].it, result["step"].it) for result in every}):
        steps.setdefault(phase, []).append(step)
    longest = max(map(len, steps.values()))
    count = max(2, MOST_RESULTS * longest // len(every))  # steps of a phase
    places = {
        (phase, numbers[round(i * (len(numbers) - 1) / (count - 1))])
        for phase, numbers in steps.items()
        for i in range(count)
    }
    return [result for result in every if (result["phase"].it, result["step"].it) in places]


def sections(evidence: Ref, has_flow: bool) -> list[tuple[str, str]]:
    """Return the id and title of each section of a page."""
    if evidence["kind"].it == "ablation":
        report = evidence["ablation"]
        empty = {"checks": not report["checks"]["runs"], "factors": not report["factors"]}
        return [(id_, title) for id_, title in OF_ABLATION.items() if not empty.get(id_)]
    absent = set() if evidence["run"] else {"losses", "evaluations"}
    absent |= set() if has_flow else {"flow"}
    return [(id_, title) for id_, title in SECTIONS.items() if id_ not in absent]


def segments(row: Ref) -> list[Shown]:
    """Return the segments of a row; pieces are numbered, and FIM roles named, where they begin."""
    shown: list[Shown] = []
    piece, role = None, ""
    for seg in row["segments"].it:
        new = seg["piece"] is not None and seg["piece"] != piece
        begins = seg["role"] if seg["role"] != role or new else ""
        style = "" if seg["piece"] is None else f" p{seg['piece'] % 2}"
        entry = None if seg["piece"] is None else row["pieces"].it[seg["piece"]]
        style += " fim" * bool(entry and entry["fim"]) + " off" * (not seg["loss"])
        title = ""
        if entry and new:
            title = str(entry["name"] or f"{entry['source']} document {entry['document']}")
        edge = seg["piece"] + 1 if new else 0
        shown.append(Shown(seg["text"], seg["tokens"], seg["special"], begins, style, edge, title))
        piece, role = seg["piece"], seg["role"] or ("" if not seg["special"] else role)
    return shown


def commands(page: Ref) -> list[str]:
    """Return the commands that make and check the build, run or ablation of a page."""
    folder, build = page["folder"].it, page["build_folder"].it
    if page["kind"].it == "ablation":
        return [
            f"crystalmix ablate SPEC --data RAW --out {folder}",
            f"crystalmix ablate export {folder} --out recipe.yaml",
            f"crystalmix report {folder} --html report.html",
        ]
    manifests = list(page["build"]["manifests"])
    if any(manifest["imported"] for manifest in manifests):
        line = f"crystalmix import FOLDER --out {build}  # with the --params or --tokens it had"
    elif any("redaction" in manifest for manifest in manifests):
        line = f"crystalmix redact ORIGIN --list LIST --out {build}"
    else:
        line = f"crystalmix build RECIPE --data RAW --out {build}  # the recipe {page['name'].it}"
    if not page["run"]:
        check = [f"crystalmix verify {build}", f"crystalmix report {build} --html report.html"]
        return [line, *check]
    return [
        line,
        f"crystalmix train {build} --run RUN_FILE --out {folder}",
        f"crystalmix verify {build} --run {folder}",
        f"crystalmix trace {folder} --findings",
        f"crystalmix report {folder} --html report.html --verify",
    ]
