"""Licences as cards have them: SPDX expressions, and those that a source's documents have."""

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from crystalmix.train.report.facts import SourceFacts


def spdx_expression(text: str) -> str | None:
    """Return a licence as an SPDX expression, None where it is none.

    >>> spdx_expression("mit or Apache-2.0"), spdx_expression("our own terms")
    ('MIT OR Apache-2.0', None)
    """
    try:
        return canonicalize_license_expression(text)
    except InvalidLicenseExpression:
        return None


def listed(value: str) -> list[str]:
    """Return the licences in a value; a list is written as DuckDB and JSON write it.

    >>> listed("MIT"), listed("[MIT, Apache-2.0]"), listed('["MIT"]')
    (['MIT'], ['MIT', 'Apache-2.0'], ['MIT'])
    """
    if not (value.startswith("[") and value.endswith("]")):
        return [value]
    entries = (entry.strip().strip("\"'") for entry in value[1:-1].split(","))
    return [entry for entry in entries if entry]


def of_documents(source: SourceFacts, most: int) -> list[str]:
    """Return the licences that a source's documents have, from the `most` largest values."""
    rows = [] if source.licences is None else source.licences.largest(1.0, most)[:most]
    return list(dict.fromkeys(licence for value, _, _ in rows for licence in listed(value)))


def of_source(source: SourceFacts) -> list[str]:
    """Return all licences of a source: the one stated, else those of documents if each has one."""
    if source.about.licence is not None:
        return [source.about.licence]
    tally = source.licences
    if tally is None or tally.sealed.missing_documents:
        return []
    return of_documents(source, tally.sealed.values)
