"""Parts of pages that are written by the package: what stands between two marks."""

from pathlib import Path


def replaced(text: str, begin: str, end: str, shown: str, page: Path) -> str:
    """The text of `page` with `shown` between the line `begin` and the first `end` below it.

    Raises:
        ValueError: `begin` is not there once, or no `end` follows.
    """
    before, found, after = text.partition(begin + "\n")
    _, ended, rest = after.partition(end)
    if not found or not ended or begin in rest:
        raise ValueError(f"report: {page} must hold one line '{begin}' and below it one '{end}', got others; put them "
                         "where the table belongs")
    return f"{before}{begin}\n\n{shown}\n\n{end}{rest}"
