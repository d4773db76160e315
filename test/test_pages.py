"""The pages are true to the repository: what they link to, run and name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from slm_lab.spec.parts import FAMILIES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *sorted(DOCS.rglob("*.md"))]
WRITTEN_BY_BENCH = DOCS / "benchmarks"  # there once `bench learning` has run
FORBIDDEN = ("/work/", "farm-", "/tmp/", "shared/", "TODO", "localhost")
MAX_PICTURE = 150_000  # bytes
LINK = re.compile(r"\]\(([^)\s]+)\)")
RUN = re.compile(r"run_lab\.py (?:check |show )?(specs/\S+?\.(?:json|ya?ml))(?: (\w+))?")


def prose(page: Path) -> str:
    """A page without its fenced code, where ](...) is no link."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub makes anchors of them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links of a page that lead nowhere."""
    broken = []
    for link in LINK.findall(text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if re.match(r"[a-z]+:", link) or (WRITTEN_BY_BENCH in target.parents and not WRITTEN_BY_BENCH.exists()):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    assert broken_links(page, prose(page)) == []


def test_a_broken_link_is_found() -> None:
    assert broken_links(ROOT / "README.md", "[a](docs/nowhere.md) [b](#nowhere) [c](LICENSE)") == [
        "docs/nowhere.md",
        "#nowhere",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_specs_in_commands_exist(page: Path) -> None:
    from slm_lab.spec.load import load_file

    for file, name in RUN.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / file).is_file(), file
        assert name in ("", "dev", "train", "search", *load_file(ROOT / file)), f"{file} {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_word_of_the_machine_it_was_written_on(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [word for word in FORBIDDEN if word in text] == []


def test_every_part_is_named_in_a_page_written_by_hand() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.name != "spec-reference.md")
    missing = [f"{family} {name}" for family, table in FAMILIES.items() for name in table if f"`{name}`" not in text]
    assert not missing


def test_pictures_are_small_and_used() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for picture in (DOCS / "img").iterdir():
        assert picture.stat().st_size < MAX_PICTURE, picture.name
        assert picture.name in text, f"{picture.name} is in no page"
