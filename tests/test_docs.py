"""Links of the documents lead somewhere, and the files that docs/architecture.md names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def prose(page: Path) -> list[str]:
    """The lines of a page that are no code."""
    lines, is_code = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        is_code ^= line.startswith("```")
        if not is_code and not line.startswith(("    ", "```")):
            lines.append(line)
    return lines


def anchors(page: Path) -> set[str]:
    """What a link may name behind `#`: the page's headings in GitHub's spelling."""
    headings = [line.lstrip("#").strip() for line in prose(page) if re.match(r"#+ ", line)]
    # `&lt;` is how a page writes `<`; letters, digits, hyphens and underscores are kept, blanks become hyphens.
    return {re.sub(r"[^\w\- ]", "", heading.replace("&lt;", "").lower()).replace(" ", "-") for heading in headings}


def relative_links(page: Path) -> list[str]:
    """Targets of a page's links within the project."""
    return [target for line in prose(page) for target in LINK.findall(line) if "://" not in target]


def broken_links(page: Path) -> list[str]:
    """Links of a page whose file does not exist, or whose heading its page does not have."""
    broken = []
    for target in relative_links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_or_heading(page: Path):
    assert broken_links(page) == [], f"{page.relative_to(ROOT)}: correct the links, or add what they name"


def test_a_link_into_nowhere_is_found(tmp_path: Path):
    (tmp_path / "there.md").write_text("# Two words, here\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n[a](there.md) [b](there.md#two-words-here) [c](#title) [d](https://example.org/x)\n"
        "[e](gone.md) [f](there.md#one-word) [g](#subtitle)\n    [h](code.md)\n```\n[i](fenced.md)\n```\n"
    )
    assert broken_links(page) == ["gone.md", "there.md#one-word", "#subtitle"]


def test_the_readme_links_to_every_guide():
    names = {path.name for path in (ROOT / "docs").glob("*.md")}
    linked = {Path(target.partition("#")[0]).name for target in relative_links(ROOT / "README.md")}
    assert names <= linked, f"README.md does not link to docs/{', docs/'.join(sorted(names - linked))}"


def test_the_lab_logs_contents_name_every_entry():
    page = ROOT / "docs" / "lab-log.md"
    missing = anchors(page) - {target.removeprefix("#") for target in relative_links(page)} - {"lab-log"}
    assert not missing, f"docs/lab-log.md: add the new entry to the contents at its top: {', '.join(missing)}"


def test_the_files_that_the_architecture_names_exist():
    page = ROOT / "docs" / "architecture.md"
    named = re.findall(r"`([\w.\-]+/[\w./\-]*\.py)`", page.read_text(encoding="utf-8"))
    missing = sorted({path for path in named if not (ROOT / path).is_file()})
    assert missing == [], f"docs/architecture.md names files that do not exist: {', '.join(missing)}"
