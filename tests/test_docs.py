"""The documentation: what is made from the code is current, every link and anchor leads somewhere, every command parses."""

import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import make_pages as build  # noqa: E402

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [p.relative_to(ROOT).as_posix() for p in PAGES]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def test_the_command_reference_is_current():
    assert (ROOT / "docs" / "commands.md").read_text() == build.commands(), "run python docs/make_pages.py"


@pytest.mark.slow
def test_the_table_of_cards_is_current():
    assert (ROOT / "docs" / "which-model.md").read_text() == build.which_model(), "run python docs/make_pages.py"


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings: small letters, marks left out, spaces to hyphens, a number for repeats."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ +(.+?) *#*$", prose(page), flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        if count:
            found[f"{slug}-{count}"] = 1
    return set(found)


def broken(page: Path) -> list[str]:
    """Links that lead to no file or no heading. Addresses on the web are not asked."""
    wrong = []
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_somewhere(page):
    assert broken(page) == []


@pytest.mark.parametrize("link", ["gone.md", "page.md#nowhere", "#nowhere"])
def test_a_link_that_leads_nowhere_is_found(tmp_path, link):
    page = tmp_path / "page.md"
    page.write_text(
        f"# Some where\n\n[one](#some-where) [two](page.md#some-where) [three]({link})\n\n```\n[four](none.md)\n```\n"
    )
    assert broken(page) == [link]


def test_every_page_is_found_from_the_index():
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / target.partition("#")[0]).resolve() for target in LINK.findall(prose(index))}
    assert {p for p in PAGES if p.parent == index.parent and p != index} <= linked


def test_where_experts_go_is_an_option_of_the_verbs_that_the_page_names():
    import argparse

    from toolkit.cli import parser

    (said,) = re.findall(r"`--gpu-experts` on (.*?), and", (ROOT / "docs" / "export.md").read_text(), flags=re.DOTALL)
    verbs = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    have = {name for name, verb in verbs.items() if "--gpu-experts" in verb.format_help()}
    assert set(re.findall(r"`(\w+)`", said)) == have


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_in_a_block_parses(page):
    from toolkit.cli import parser

    for block in re.findall(r"^```(?:sh|bash)?\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():  # a command may go on in the next line
            if line.startswith("fablesmith ") and "…" not in line and "RECIPE" not in line:
                try:
                    parser().parse_args(shlex.split(line, comments=True)[1:])
                except SystemExit as wrong:
                    raise AssertionError(f"{line} does not parse") from wrong
