"""The pages of the project, their fenced blocks and their links."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("cluster/**/*.md")])
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block; `section`: everything from its heading to the next one."""

    page: Path
    line: int
    language: str
    text: str
    section: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(language: str, page: Path | None = None) -> list[Block]:
    """All blocks of a language, or those of one page."""
    found = []
    for each in PAGES if page is None else [page]:
        text = each.read_text()
        for match in _FENCE.finditer(text):
            if match[1] == language:
                line = text.count("\n", 0, match.start()) + 1
                found.append(Block(each, line, language, match[2], _section(text, match.start())))
    return found


def _section(text: str, place: int) -> str:
    outside = _FENCE.sub(lambda match: match[0].replace("\n#", "\n "), text)  # a comment is no heading
    headings = [match.start() for match in re.finditer(r"^#+ ", outside, re.M)]
    start = max(heading for heading in headings if heading <= place)
    return text[start : min((heading for heading in headings if heading > place), default=len(text))]


def commands(text: str) -> list[list[str]]:
    """The words of each command of a bash block, without comments; lines that belong together are one."""
    found, pending = [], ""
    for line in text.splitlines():
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quotation that goes on
            pending += "\n"
            continue
        if words and words[0] == "{" and "}" not in words:
            pending += "\n"
            continue
        if words:
            found.append(words)
        pending = ""
    assert not pending, pending
    return found


def anchors(page: Path) -> set[str]:
    """What #... may name on the page, as GitHub makes it from headings."""
    text = _FENCE.sub("", page.read_text())
    made = [
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.M)
    ]
    return {name if not made[:n].count(name) else f"{name}-{made[:n].count(name)}" for n, name in enumerate(made)}


def links(page: Path) -> list[str]:
    """The targets of its links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", page.read_text()))
