"""Hosts of urls, and the registrable domains that they belong to by the public suffix list."""

import re
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any

HOST_NAMES = "host name"
# The host of a url in DuckDB's SQL: after scheme and user info, before port, path and query.
HOST_PATTERN = r"^\s*(?:(?:[a-z][a-z0-9+.-]*:)?//)?(?:[^/?#\s]*@)?(\[[^\]/?#\s]*\]|[^/?#:\s]*)"
LABELS = re.compile(r"[^.\s]+(\.[^.\s]+)+")
LIST_VERSION = re.compile(r"^// VERSION: (\d{4}-\d\d-\d\d)", re.MULTILINE)
HEAD_BYTES = 4096
Domain = Callable[[str], str | None]


def host_sql(url: str) -> str:
    """Return SQL of the host in a url, in lower case; what is no host is for `domains_by`."""
    return f"rtrim(lower(regexp_extract({url}, '{HOST_PATTERN}', 1, 'i')), '.')"


def domains_by() -> tuple[str, Domain]:
    """Return by what hosts are counted, in words, and the domain of a host.

    The package publicsuffixlist brings the list, dated; without it each host counts by itself.
    """
    if find_spec("publicsuffixlist") is None:
        return HOST_NAMES, known_host
    package: Any = import_module("publicsuffixlist")
    with Path(package.PSLFILE).open(encoding="utf-8") as file:
        version = LIST_VERSION.search(file.read(HEAD_BYTES))
    date = f" of {version[1]}" if version else ""
    suffixes = package.PublicSuffixList()

    def registrable(host: str) -> str | None:
        known = known_host(host)
        if known is None or is_address(known):
            return known
        return suffixes.privatesuffix(known) or known  # a public suffix itself, such as github.io

    return f"registrable domain, public suffix list{date}", registrable


def known_host(host: str) -> str | None:
    """Return a host as it is counted, names of other scripts in Punycode; None for what is none.

    >>> known_host("bücher.example"), known_host("[2001:db8::1]"), known_host("readme")
    ('xn--bcher-kva.example', '2001:db8::1', None)
    """
    if host.startswith("["):
        host = host.strip("[]")
        return host if is_address(host) else None
    if not LABELS.fullmatch(host):
        return None
    try:
        return host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:  # no label of a domain name
        return None


def is_address(host: str) -> bool:
    """Return whether a host is an IP address."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
