"""The generated end of a page: all below its marker.

PAGE.write_text(with_end(PAGE.read_text(), reference()))
"""

from __future__ import annotations

BELOW = "<!-- Below: written by `make docs` -->\n"


def with_end(page: str, end: str) -> str:
    """The page's text with its end written anew."""
    return f"{page.partition(BELOW)[0]}{BELOW}\n{end}"
