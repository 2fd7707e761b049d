"""The public summary of training content of the EU AI Act, Article 53(1)(d), by its template.

Every section of the template is there in its order. What no manifest, receipt, ledger or statement
of the author answers is printed as not stated, and listed at the end.
"""

from crystalmix.train.report import markdown
from crystalmix.train.report.build_files import public_name
from crystalmix.train.report.facts import Facts, SourceFacts
from crystalmix.train.report.words import Blanks, table

CLASSES = ((10**9, "less than 1 billion"), (10**13, "1 billion to 10 trillion"))
LARGEST = "more than 10 trillion"
LICENSED = "Datasets commercially licensed by rightsholders or their representatives"
RIGHTS = "Respect of reservation of rights from text and data mining exception or limitation"
USERS = {"model": "the model itself", "services": "other services or products"}
TOP, SME = 0.1, (0.05, 1000)  # share of domains to name, and at most how many
# Sections of data by the `kind` of sources that belongs there.
SECTIONS = (
    ("2.1", "Publicly available datasets", "public"),
    ("2.2.1", LICENSED, "licensed"),
    ("2.2.2", "Private datasets obtained from other third parties", "private"),
    ("2.3", "Data crawled and scraped from online sources", "crawled"),
    ("2.4", "User data", "user"),
    ("2.5", "Synthetic data", "synthetic"),
    ("2.6", "Other sources of data", "other"),
)


def summary(facts: Facts, blanks: Blanks) -> list[str]:
    """Return the summary."""
    summary = facts.card.summary
    return [
        "# Public summary of training content",
        "",
        f"- Version of the summary: {blanks.say('summary.version', summary.version)}",
        f"- Last update: {blanks.say('summary.updated', summary.updated)}",
        "",
        *_general(facts, blanks),
        *_data(facts, blanks),
        *_processing(facts, blanks),
        *markdown.evidence(facts),
        *blanks.section(),
    ]


def size_class(tokens: int) -> str:
    """Return the template's class of a number of tokens.

    >>> size_class(10**9 - 1), size_class(10**9), size_class(10**13 + 1)
    ('less than 1 billion', '1 billion to 10 trillion', 'more than 10 trillion')
    """
    below, middle = CLASSES
    if tokens < below[0]:
        return below[1]
    return middle[1] if tokens <= middle[0] else LARGEST


def _general(facts: Facts, blanks: Blanks) -> list[str]:
    say, provider, model = blanks.say, facts.card.provider, facts.card.model
    size = facts.planned if facts.unique is None else facts.unique
    basis = "planned, epochs counted" if facts.unique is None else "each domain once"
    trained = "planned" if facts.consumed is None else "consumed by recorded steps"
    tokens = facts.planned if facts.consumed is None else facts.consumed
    languages = sorted({language for s in facts.trained for language in s.about.languages})
    silent = [s.name for s in facts.trained if not s.about.languages]
    ends = [s.about.collected.to for s in facts.trained]
    newer = facts.card.summary.continuous
    latest = max((end for end in ends if end), default=None)
    return [
        "## 1 General information",
        "",
        "### 1.1 Provider identification",
        "",
        f"- Provider: {say('provider.name', provider.name)}",
        f"- Contact: {say('provider.contact', provider.contact)}",
        f"- Authorised representative: {say('provider.representative', provider.representative)}",
        "",
        "### 1.2 Model identification",
        "",
        f"- Versioned model names: {say('model.names', model.names)}",
        f"- Model dependencies: {say('model.base', model.base)}",
        f"- Date of placing on the Union market: {say('model.placed', model.placed)}",
        "",
        "### 1.3 Modalities, overall training data size and other characteristics",
        "",
        "- Modality: text, as token ids; a build holds no other",
        f"- Training data size: {size_class(size)} tokens ({size:,}, {basis})",
        f"- Tokens {trained}, epochs counted: {tokens:,}",
        f"- Types of content: {say('sources', [s.title for s in facts.trained])}",
        f"- Latest date of acquisition: {say('sources.about.collected.to', latest)}"
        f"{_among(len([end for end in ends if end]), len(ends))}",
        f"- Continuous training after it: {say('summary.continuous', newer)}",
        f"- Languages: {say('sources.about.languages', languages)}"
        f"{_among(len(facts.trained) - len(silent), len(facts.trained))}",
        "",
    ]


def _among(stated: int, every: int) -> str:
    """Return of how many sources a field is stated, where it is not of all."""
    return "" if stated in {0, every} else f" (stated of {stated:,} of {every:,} sources)"


def _data(facts: Facts, blanks: Blanks) -> list[str]:
    lines = ["## 2 List of data sources", ""]
    for number, title, kind in SECTIONS:
        if number == "2.2.1":
            lines += [
                "### 2.2 Private non-publicly available datasets obtained from third parties",
                "",
            ]
        level = "####" if number.count(".") == 2 else "###"
        lines += [f"{level} {number} {title}", ""]
        sources = facts.about(kind)
        lines += [f"- Used: {_used(facts, blanks, number, sources)}", ""]
        for source in sources:
            lines += [f"**{source.title}**", "", *_source(facts, source, blanks), ""]
    if unknown := facts.about(None):
        lines += ["### Sources whose kind is not stated", ""]
        for source in unknown:
            lines += [f"**{source.title}**", "", *_source(facts, source, blanks), ""]
    return [*lines, "### Tokens of each source in each domain", "", *_tokens(facts)]


def _used(facts: Facts, blanks: Blanks, number: str, sources: list[SourceFacts]) -> str:
    """Return yes or no; not stated where a source of unknown kind leaves it open."""
    if sources:
        return "yes"
    open_ = facts.about(None) or not facts.trained
    return blanks.say(f"section {number}", None if open_ else False)


def _source(facts: Facts, source: SourceFacts, blanks: Blanks) -> list[str]:
    about, name = source.about, f"sources.{source.name}.about"
    lines = markdown.described(facts, source, blanks)
    if about.kind == "synthetic":
        lines.append(f"- generated by: {blanks.say(f'{name}.generator', about.generator)}")
    if about.kind == "user":
        users = None if about.users is None else USERS[about.users]
        lines.append(f"- data of users of: {blanks.say(f'{name}.users', users)}")
    if about.kind == "crawled":
        crawler = about.crawler
        lines += [
            f"- crawler: {blanks.say(f'{name}.crawler.name', crawler.name)}",
            f"- its purpose: {blanks.say(f'{name}.crawler.purpose', crawler.purpose)}",
            f"- its behaviour: {blanks.say(f'{name}.crawler.behaviour', crawler.behaviour)}",
            *_domains(facts, source, blanks),
        ]
    return lines


def _domains(facts: Facts, source: SourceFacts, blanks: Blanks) -> list[str]:
    """Return the largest domains by size of content, as many as the template asks for."""
    if source.domains is None:
        name = f"sources.{source.name}.about.domains"
        return [f"- domain names, the largest by size of content: {blanks.say(name, None)}"]
    few = bool(facts.card.provider.sme)
    rows = source.domains.largest(*(SME if few else (TOP, None)))
    rule = "5 % or 1,000, as of an SME" if few else "10 %"
    sealed = source.domains.sealed
    return [
        f"- domain names, the largest {rule} by bytes of text, with those of equal size: "
        f"{len(rows):,} of {sealed.values:,} ({sealed.by})",
        "",
        *table(["domain", "documents", "bytes"], rows),
    ]


def _tokens(facts: Facts) -> list[str]:
    """Return a table whose sum is the training data size."""
    entries = facts.held
    whole = sum(t.tokens for t in entries)
    rows = [[t.source, t.domain, t.documents, t.tokens, t.tokens / max(1, whole)] for t in entries]
    return table(["source", "domain", "documents", "tokens, once", "share"], rows)


def _processing(facts: Facts, blanks: Blanks) -> list[str]:
    summary, say = facts.card.summary, blanks.say
    opted = [[s.name, s.dropped.get("opt_out", 0), len(s.lists)] for s in facts.trained]
    lists = [
        f"- list of {s.name}: {public_name(file.name)}, xxh3 `{file.xxh3}`"
        for s in facts.trained
        for file in s.lists
    ]
    dropped = [[s.name, reason, n] for s in facts.trained for reason, n in s.dropped.items()]
    return [
        "## 3 Data processing aspects",
        "",
        f"### 3.1 {RIGHTS}",
        "",
        f"- Signatory of the Code of Practice: {say('summary.signatory', summary.signatory)}",
        f"- Measures: {say('summary.rights', summary.rights)}",
        *lists,
        "",
        *table(["source", "records dropped by opt-out lists", "lists"], opted),
        "### 3.2 Removal of illegal content",
        "",
        f"- Measures: {say('summary.illegal', summary.illegal)}",
        "",
        "### 3.3 Other information",
        "",
        f"- {say('summary.other', summary.other)}",
        "",
        *table(["source", "reason", "records dropped"], dropped),
    ]
