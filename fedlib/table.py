"""A table of results: text and HTML from one value, so that both are shown and compared."""

__all__ = ["Table", "table"]

import html
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple

from fedlib._checks import check_in, check_type, refuse

MARKS = {
    "highest in column": "highest of its column",
    "lowest in column": "lowest of its column",
    "highest in row": "highest of its row",
    "lowest in row": "lowest of its row",
    "not 0": "the interval does not contain 0",
}
WIDE = 44
"""Characters of text that a phone shows in one row; what is wider folds there."""


class Cell(NamedTuple):
    """One entry: its text, whether it is marked, and whether it holds words, not a number."""

    text: str
    marked: bool
    words: bool


@dataclass(frozen=True, repr=False)
class Table:
    """A table that a notebook shows as HTML and a terminal as text; made by ``table``.

    Attributes:
        columns: heads of the columns, the first one above the names of the rows.
        blocks: for each block of rows its title ("" for none) and its rows: name, cells.
        caption: what the numbers are; "" for none.
        meaning: of a mark; "" if nothing is to be marked.
        note: written below; "" for none.
    """

    columns: tuple[str, ...]
    blocks: tuple[tuple[str, tuple[tuple[str, tuple[Cell, ...]], ...]], ...]
    caption: str
    meaning: str
    note: str

    def __repr__(self) -> str:
        """Aligned text: a line per row, a star behind what is marked."""
        indent = "  " if any(title for title, _ in self.blocks) else ""
        rows = [row for _, block in self.blocks for row in block]
        columns = [[self.columns[0], *(indent + name for name, _ in rows)]]
        left = [True]
        for head, cells in zip(
            self.columns[1:], zip(*(row for _, row in rows), strict=True), strict=True
        ):
            room = any(cell.marked for cell in cells)
            columns.append([head, *(c.text + ("*" if c.marked else " " * room) for c in cells)])
            left.append(all(cell.words for cell in cells if cell.text))
        grid = list(zip(*columns, strict=True))
        widths = [max(map(len, column)) for column in columns]

        def line(texts: tuple[str, ...]) -> str:
            placed = zip(texts, widths, left, strict=True)
            return "  ".join(t.ljust(w) if to_left else t.rjust(w) for t, w, to_left in placed)

        lines, rest = [self.caption, line(grid[0])], iter(grid[1:])
        for title, block in self.blocks:
            lines += [title, *(line(next(rest)) for _ in block)]
        lines += [self.meaning and f"* {self.meaning}", self.note]
        return "\n".join(text.rstrip() for text in lines if text)

    def _repr_html_(self) -> str:
        """The same as an HTML table, which folds on a phone if its text is wide."""
        wide = max(map(len, repr(self).split("\n")[1:])) > WIDE
        head, *heads = map(_escape, self.columns)
        out = [f'<table class="results{" wide" * wide}">']
        if self.caption:
            out.append(f"<caption>{_escape(self.caption)}</caption>")
        corner = f'<th scope="col"{LEFT}>{head}</th>' if head else "<td></td>"
        out.append(f"<thead><tr>{corner}")
        out += [f'<th scope="col">{text}</th>' for text in heads]
        out.append("</tr></thead>")
        for title, rows in self.blocks:
            out.append("<tbody>")
            if title:
                span = f'colspan="{len(self.columns)}" scope="rowgroup"{LEFT}'
                out.append(f'<tr class="block"><th {span}>{_escape(title)}</th></tr>')
            for name, cells in rows:
                out.append(f'<tr><th scope="row"{LEFT}>{_escape(name)}</th>')
                for text, cell in zip(heads, cells, strict=True):
                    named = f' data-head="{text}"' if wide and cell.text else ""
                    out.append(f"<td{named}{LEFT * cell.words}>{_cell_html(cell)}</td>")
                out.append("</tr>")
            out.append("</tbody>")
        below = [f"<strong>Bold</strong>: {_escape(self.meaning)}"] if self.meaning else []
        below += [_escape(self.note)] if self.note else []
        if below:
            span = f'colspan="{len(self.columns)}"{LEFT}'
            out.append(f"<tfoot><tr><td {span}>{'. '.join(below)}</td></tr></tfoot>")
        return "\n".join([*out, "</table>"])


LEFT = ' style="text-align: left"'  # notebooks align everything to the right


def table(
    rows: Mapping[str, Sequence[object]] | Mapping[str, Mapping[str, Sequence[object]]],
    columns: Sequence[str],
    *,
    form: str | Sequence[str] = ".3f",
    mark: str | Mapping[str, str] = "",
    caption: str = "",
    units: str | Sequence[str] = "",
    note: str = "",
) -> Table:
    """Lay out results as a table.

    Args:
        rows: the cells of each row by its name; or blocks of rows by their titles. A cell is a
            number, an interval (a mean and a half-width), a text, or None for nothing. Not a number
            is shown as a dash; whole numbers are shown whole.
        columns: a head for the names of the rows ("" for none), and one for each column of cells.
        form: how numbers are formatted, as in ``format``: one for all, or one for each column.
        mark: which cells are marked, bold in HTML and with a star in text: "highest in column",
            "lowest in column" (of each block), "highest in row", "lowest in row", or "not 0",
            intervals that do not contain 0. For all columns, or by the head of each that counts.
            What reads the same as the best is marked as well.
        caption: what the numbers are.
        units: written behind the heads: one for all columns of cells, or one for each.
        note: written below.

    Returns:
        The table: ``repr`` gives text, and notebooks show HTML.

    Raises:
        TypeError: if an argument or a cell is of another type.
        ValueError: if a row has another number of cells than there are columns, or a format, a mark
            or a column to mark does not exist.

    Example:
        >>> from fedlib import Interval
        >>> rows = {"FedAvg": [Interval(0.61, 0.02), 20], "one step": [Interval(0.21, 0.03), 1]}
        >>> table(rows, ["", "accuracy", "local steps"], mark={"accuracy": "highest in column"})
                        accuracy  local steps
        FedAvg    0.610 ± 0.020*           20
        one step  0.210 ± 0.030             1
        * highest of its column

    Reference: Chapter 3, where the first one is.
    """
    rows = check_type("rows", rows, Mapping, "Use a dict of lists: cells by the row's name.")
    columns = _texts("columns", columns)
    nested = any(isinstance(row, Mapping) for row in rows.values())
    blocks: Mapping[str, Any] = rows if nested else {"": rows}
    width = len(columns) - 1
    if width < 1 or not all(blocks.values()):
        what = "no rows" if width >= 1 else "no column of cells"
        refuse("rows", rows, what, "at least one row, and heads for the names and the cells")
    forms = _each("form", form, width)
    for spec in forms:
        _check_form(spec)
    heads = [
        f"{head} ({unit})" if unit else head
        for head, unit in zip(columns[1:], _each("units", units, width), strict=True)
    ]
    if isinstance(mark, str):
        marks: Mapping[str, str] = dict.fromkeys(columns[1:], mark)
    else:
        marks = check_type("mark", mark, Mapping, "Use a rule, or a dict: rule by column.")
    for head, rule in marks.items():
        check_in("a column of mark", head, columns[1:])
        check_in("mark", rule, ["", *MARKS])
    rules = [marks.get(head, "") for head in columns[1:]]

    laid: list[Any] = []
    for title, block in blocks.items():
        block = check_type("rows", block, Mapping, "Use blocks of rows throughout, or none.")
        for name, cells in block.items():
            if isinstance(cells, str) or not hasattr(cells, "__len__") or len(cells) != width:
                refuse("rows", {name: cells}, f"not {width} cells", "one for each column, or None")
        texts = [[_text(c, f) for c, f in zip(r, forms, strict=True)] for r in block.values()]
        marked = _marked(list(block.values()), texts, rules)
        cells = [
            tuple(
                Cell(text, is_marked, isinstance(cell, str))
                for text, is_marked, cell in zip(*row, strict=True)
            )
            for row in zip(texts, marked, block.values(), strict=True)
        ]
        laid.append((str(title), tuple(zip(map(str, block), cells, strict=True))))
    used = dict.fromkeys(rule for rule in rules if rule)
    meaning = "; ".join(MARKS[rule] for rule in used)
    if len(laid) > 1 and "column" in meaning:
        meaning += ", in each block"
    note = check_type("note", note, str, "Use a text.")
    caption = check_type("caption", caption, str, "Use a text.")
    return Table((columns[0], *heads), tuple(laid), caption, meaning, note)


def _texts(name: str, value: object) -> list[str]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        refuse(name, value, "not a list of texts", f"{name}=[...]", error=TypeError)
    return [check_type(f"an entry of {name}", text, str, "Use texts.") for text in value]


def _each(name: str, value: object, width: int) -> list[str]:
    """Return one text for each column."""
    texts = [value] * width if isinstance(value, str) else _texts(name, value)
    if len(texts) != width:
        refuse(name, value, f"{len(texts)} for {width} columns", f"{name} for each, or one for all")
    return texts


def _check_form(spec: str) -> None:
    try:
        _number(0.5, spec)
    except ValueError:
        refuse("form", spec, "not a format of numbers", "form='.3f', say")


def _number(value: Real | float, spec: str) -> str:
    """Format a number; what rounds to zero has no minus."""
    sign, rest = (spec[0], spec[1:]) if spec[:1] in ("+", "-", " ") else ("", spec)
    return "–" if math.isnan(value) else format(float(value), f"{sign}z{rest}")


def _text(cell: object, spec: str) -> str:
    for part in cell if isinstance(cell, tuple) else (cell,):
        if isinstance(part, Integral) and abs(int(part)) > sys.float_info.max:
            refuse("rows", cell, "more than double precision holds", "smaller numbers, or texts")
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Integral) and not isinstance(cell, bool):
        return str(int(cell))
    if isinstance(cell, Real) and not isinstance(cell, bool):
        return _number(cell, spec)
    if isinstance(cell, tuple) and len(cell) == 2 and all(isinstance(x, Real) for x in cell):
        return f"{_number(cell[0], spec)} ± {_number(cell[1], spec.lstrip('+- '))}"
    refuse("rows", cell, "not a cell", "a number, an interval, a text or None", error=TypeError)


def _marked(
    rows: Sequence[Sequence[object]], texts: Sequence[Sequence[str]], rules: Sequence[str]
) -> list[list[bool]]:
    """Return which cells of one block are marked."""
    marked = [[False] * len(rules) for _ in rows]
    places = {(r, c): cell for r, row in enumerate(rows) for c, cell in enumerate(row)}
    numbers = {
        place: cell[0] if isinstance(cell, tuple) else cell
        for place, cell in places.items()
        if isinstance(cell, Real | tuple)
    }
    numbers = {place: value for place, value in numbers.items() if not math.isnan(value)}
    for (r, c), value in numbers.items():
        rule = rules[c]
        if rule == "not 0":
            cell = places[r, c]
            marked[r][c] = isinstance(cell, tuple) and abs(value) > cell[1]
        elif rule:
            best = max if rule.startswith("highest") else min
            rivals = [
                (i, j)
                for i, j in numbers
                if rules[j] == rule and (i == r if rule.endswith("row") else j == c)
            ]
            i, j = best(rivals, key=lambda place: numbers[place])
            mean = texts[r][c].partition(" ")[0]
            marked[r][c] = len(rivals) > 1 and mean == texts[i][j].partition(" ")[0]
    return marked


def _escape(text: str) -> str:
    return html.escape(text).replace("\n", " ")


def _cell_html(cell: Cell) -> str:
    text = _escape(cell.text)
    if not cell.words:
        text = text.replace("-", "−")
        mean, plus_minus, half = text.partition(" ± ")
        text = mean + (f" <span>± {half}</span>" if plus_minus else "")
    return f"<strong>{text}</strong>" if cell.marked else text
