"""Tables of the accounts of a build."""

from pathlib import Path

import orjson
import pytest

from crystalmix.mixtures.verify import account_report
from helpers import corpora


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpora.built(tmp_path_factory.mktemp("small"))


def test_the_accounts_of_every_folder_are_told(small: Path) -> None:
    told = "\n".join(account_report.account_lines(small))
    for path in (*small.glob("sources/*/receipt.json"), *small.glob("domains/*/*/receipt.json")):
        assert path.parent.relative_to(small).as_posix() in told
    web = next(line for line in told.splitlines() if line.startswith("sources/web"))
    assert web.split()[1:4] == ["126", "36", "8,188"]
    assert web.endswith("blank 3, no_text 3, where 84")


def test_show_tells_a_build_and_parses(small: Path) -> None:
    told = corpora.crystalmix("show", small)
    assert told.exit_code == 0
    assert told.stdout.index("small prose:") < told.stdout.index("small mixed:")
    content = orjson.loads(corpora.crystalmix("show", small, "--json").stdout)
    assert [each["phase"] for each in content["manifests"]] == ["prose", "mixed", "code"]
