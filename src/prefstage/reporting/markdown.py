"""Tables that other packages write in Markdown, read back."""

from prefstage.reporting.blocks import Table


def read_tables(text: str, caption: str) -> tuple[list[Table], list[str]]:
    """Part a Markdown text into its table and what is said beside it.

    Args:
        text: One table, and other lines.
        caption: The table's.

    Returns:
        The table, if there is one, and the other lines that are not empty.
    """
    rows, rest = list[tuple[str, ...]](), list[str]()
    for line in text.splitlines():
        if not line.startswith("|"):
            rest += [line] if line.strip() else []
            continue
        cells = tuple(cell.strip() for cell in line.strip().strip("|").split(" | "))
        if not set("".join(cells)) <= {"-"}:
            rows.append(cells)
    tables = [Table(caption, rows[0], tuple(rows[1:]))] if rows else []
    return tables, rest
