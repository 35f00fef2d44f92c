"""What pages of the documentation hold: fenced blocks, code in the text, commands."""

import functools
import itertools
import pathlib
import re
import shlex
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARK = re.compile(r"<!-- (needs: .+|runs) -->")


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        language: what it is fenced as.
        text: what is in it.
        line: the first one, from 1.
        mark: what a comment right before it says, "needs: ..." or "runs"; "" without.
        output: of a block of text right after it, which shows what comes out; "" without.
    """

    language: str
    text: str
    line: int
    mark: str
    output: str


@functools.cache
def blocks(page: pathlib.Path) -> list[Block]:
    tokens = MarkdownIt().parse(page.read_text())
    found, mark = [], ""
    for token, following in itertools.pairwise([*tokens, None]):
        assert token is not None
        if token.type == "fence" and token.map:
            shown = following is not None and following.type == "fence" and following.info == "text"
            output = following.content if following and shown else ""
            found.append(Block(token.info, token.content, token.map[0] + 2, mark, output))
        match = MARK.fullmatch(token.content.strip()) if token.type == "html_block" else None
        mark = match[1] if match else ""
    return found


def pages_with(**what: str) -> list[pathlib.Path]:
    """Pages with a block of this language or mark."""
    return [page for page in PAGES if any(what.items() <= block._asdict().items() for block in blocks(page))]


def name(page: pathlib.Path) -> str:
    return str(page.relative_to(ROOT))


@functools.cache
def inline_code(page: pathlib.Path) -> list[str]:
    tokens = MarkdownIt().enable("table").parse(page.read_text())
    children = [child for token in tokens for child in token.children or ()]
    return [" ".join(child.content.split()) for child in children if child.type == "code_inline"]


def commands(text: str) -> list[list[str]]:
    """Words of each command of a bash text; those joined by && and | are apart."""
    found: list[list[str]] = []
    pending = ""
    for line in text.replace("\\\n", " ").splitlines():
        pending += line
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # quotes go on in the next line
            pending += "\n"
            continue
        pending = ""
        joints = [-1, *(place for place, word in enumerate(words) if word in ("&&", "|")), len(words)]
        found += [words[before + 1 : after] for before, after in itertools.pairwise(joints)]
    assert not pending, pending
    return [words for words in found if words]
