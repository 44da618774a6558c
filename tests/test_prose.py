"""The prose is held to a style: short sentences, short lines, and Chinese pages that say what the English ones say."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENGLISH = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CHINESE = [ROOT / "README.zh.md", *sorted((ROOT / "docs" / "zh").glob("*.md"))]
LONGEST_LINE = 120
MOST_WORDS = 35  # of an English sentence
MOST_CHARACTERS = 80  # of a Chinese sentence; a Latin word counts as one


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def lines_of(page: Path) -> Iterator[tuple[int, str]]:
    """(number, line) outside code blocks."""
    fenced = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, line


def paragraphs(page: Path) -> Iterator[tuple[int, str]]:
    """(first line, text) of prose: no code, tables, headings or pictures; a list item is a paragraph."""
    start, held = 0, []
    for number, line in [*lines_of(page), (0, "")]:
        item = re.match(r"\s*([-*]|\d+\.)\s+", line)
        outside = not line.strip() or re.match(r"\s*(\||#|!\[)", line)
        if held and (item or outside or number != start + len(held)):
            yield start, " ".join(held)
            held = []
        if not outside:
            start = start if held else number
            held.append(line[item.end() :].strip() if item else line.strip())


def sentences(text: str) -> list[str]:
    """Links without their targets, code as one word."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "X", text)
    return re.split(r"(?<=[.!?])[\"')*_]*\s+|(?<=[。！？])", text)


def is_too_long(sentence: str) -> bool:
    latin = len(re.findall(r"[A-Za-z0-9][\w'’.,/%-]*", sentence))
    han = len(re.findall(r"[\u4e00-\u9fff]", sentence))
    return latin + han > MOST_CHARACTERS if han else latin > MOST_WORDS


@pytest.mark.parametrize("page", [*ENGLISH, *CHINESE], ids=name_of)
def test_no_sentence_is_too_long(page: Path) -> None:
    found = [(number, one) for number, text in paragraphs(page) for one in sentences(text) if is_too_long(one)]
    assert not found, f"{name_of(page)}: {found}"


@pytest.mark.parametrize("page", [*ENGLISH, *CHINESE], ids=name_of)
def test_no_line_is_too_long(page: Path) -> None:
    """Tables and code aside, and the targets of links."""
    prose = [(number, re.sub(r"\]\([^)]*\)", "]", line)) for number, line in lines_of(page) if line[:1] != "|"]
    assert not [number for number, line in prose if len(line) > LONGEST_LINE], name_of(page)


def test_a_long_sentence_and_a_long_line_are_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\nShort.\n" + "word " * 20 + "\n" + "word " * 16 + ".\n\n```\n" + "code " * 50 + "\n```\n"
    )
    (found,) = [(number, one) for number, text in paragraphs(page) for one in sentences(text) if is_too_long(one)]
    assert found[0] == 3 and len(found[1].split()) == 37
    assert is_too_long("字" * 81) and not is_too_long("字" * 80) and not is_too_long("word " * 35)


# --- English and Chinese pages that say the same


def english_of(page: Path) -> Path:
    return ROOT / "README.md" if page.parent == ROOT else ROOT / "docs" / page.name


def part_of(page: Path, chinese: Path) -> str:
    """The English page as far as the Chinese one translates it: results.md up to its first section of detail."""
    text = page.read_text(encoding="utf-8")
    count = len(re.findall(r"^## ", chinese.read_text(encoding="utf-8"), re.MULTILINE))
    if page.name != "results.md":
        return text
    starts = [match.start() for match in re.finditer(r"^## ", text, re.MULTILINE)]
    return text[: starts[count]] if count < len(starts) else text


def blocks(text: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def without_blocks(text: str) -> str:
    return re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def codes(text: str) -> Counter[str]:
    return Counter(re.findall(r"`([^`\n]+)`", without_blocks(text)))


def figures(text: str) -> Counter[str]:
    """Numbers with their decimals, outside code and links; thousands without their commas."""
    bare = re.sub(r"`[^`]*`|\]\([^)]*\)", " ", without_blocks(text))
    return Counter(re.findall(r"\d+(?:\.\d+)?", re.sub(r"(?<=\d),(?=\d{3})", "", bare)))


def table_shapes(text: str) -> list[int]:
    """Columns of each row, in order."""
    return [line.count("|") - line.count("\\|") for line in without_blocks(text).splitlines() if line.startswith("|")]


@pytest.mark.parametrize("chinese", CHINESE, ids=name_of)
def test_the_chinese_page_has_the_same_headings_commands_tables_and_figures(chinese: Path) -> None:
    theirs, ours = part_of(english_of(chinese), chinese), chinese.read_text(encoding="utf-8")
    assert re.findall(r"^#+ ", ours, re.MULTILINE) == re.findall(r"^#+ ", theirs, re.MULTILINE)
    commands = [[line.partition("#")[0].strip() for line in block.splitlines()] for block in blocks(theirs)]
    assert [[line.partition("#")[0].strip() for line in block.splitlines()] for block in blocks(ours)] == commands
    assert table_shapes(ours) == table_shapes(theirs)
    assert codes(ours) == codes(theirs)
    assert figures(ours) == figures(theirs)


def test_both_glossaries_explain_the_same_terms() -> None:
    """The rows are equal, in order; the Chinese page has its two columns first."""
    english, chinese = (
        [line.strip("| ").split(" | ") for _, line in lines_of(page) if line[:1] == "|"]
        for page in (ROOT / "docs" / "glossary.md", ROOT / "docs" / "zh" / "glossary.md")
    )
    assert all(len(row) == 4 for row in english if row[0][:3] != "---")
    assert [row[2:] + row[:2] for row in chinese] == english


def test_pages_for_users_have_a_chinese_one() -> None:
    """What a developer reads is English alone."""
    for_developers = {"architecture", "deviations", "follow-one-batch", "paper_map"}
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert {page.stem for page in (ROOT / "docs" / "zh").glob("*.md")} == pages - for_developers
