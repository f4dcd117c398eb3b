"""Tables that a measurement puts into a page of the documentation."""

from __future__ import annotations

from pathlib import Path

from zeroshot_d2.storage import read_text, write_text


def put_table(page: Path, begin: str, end: str, table: str) -> None:
    """Put a table between two marks of a page, in place of what is there.

    Raises:
        ValueError: the page lacks a mark.
    """
    before, after = around_table(page, begin, end)
    write_text(page, f"{before}{begin}\n{table}\n{end}{after}")


def around_table(page: Path, begin: str, end: str) -> tuple[str, str]:
    """What a page has before the first mark and after the second one.

    Raises:
        FileNotFoundError, ValueError: there is no such page, or it lacks a mark.
    """
    before, first, rest = read_text(page, "page").partition(begin)
    _, last, after = rest.partition(end)
    if not (first and last):
        raise ValueError(f"{page} has no {begin} and {end}: put them where the table should be")
    return before, after
