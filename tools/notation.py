r"""One letter, one meaning: the mathematics of every page against book/notation.md.

    python tools/notation.py     # symbols × chapters, as the text uses them

The page explains symbols in tables. Those with a column `chapters` hold for these chapters alone.
A symbol is a letter with its font and accents. An index belongs to it where the page says so:
`u_s` is u with any index, `d_w` and `L_{\max}` are themselves; a star or a sign above likewise.
Where the page is silent, a bar and a dot are a mean and a difference of what it explains. The
letters in its tables `free` may be bound anywhere, but for the chapters in which they are symbols.
"""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain, pairwise
from pathlib import Path

import notebooks
from myst import CODE, SPAN
from repository import ROOT, pages

PAGE = ROOT / "book" / "notation.md"
BLOCK = re.compile(r"^(`{3,}|:{3,})\{math\}(?P<body>.*?)^\1[ \t]*$", re.MULTILINE | re.DOTALL)
TEXT = re.compile(
    r"(?<=\|)_F|\\(?:text\w*|label|tag|begin|end|ref|eqref|\w*space)\*?\s*(?:\{[^{}]*\})+|\\\\\[[^\]]*\]"
)
WORD = re.compile(r"\\(?:mathrm|operatorname\*?)\s*\{([^{}]*)\}")
DIFFERENTIAL = re.compile(r"(?<![A-Za-z\\])d(?=[a-z](?![A-Za-z]))")
TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\S", re.DOTALL)
GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi "
    "pi varpi rho varrho sigma varsigma tau upsilon phi varphi chi psi omega Gamma Delta Theta "
    "Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell"
)
LETTERS = {rf"\{name}" for name in GREEK.split()}
FONTS = {rf"\math{name}" for name in ("cal", "bb", "bf", "frak", "sf")}
ACCENTS = {rf"\{name}" for name in ("hat", "bar", "tilde", "dot", "check", "vec", "mathring")}
ACCENTS |= {r"\widehat", r"\widetilde", r"\overline"}
ANY = {"i", "j", "s", "t", "i,s", r"\tau"}  # with one of these the page means any index
MARKS = {"*", r"\star", r"\circ", r"\perp", "+", "-", "0"}  # exponents that are part of a name


@dataclass(frozen=True)
class Symbol:
    """A letter as it stands: index and mark are None where it has none."""

    letter: str
    index: str | None = None
    mark: str | None = None
    inside: tuple["Symbol", ...] = field(default=(), compare=False)  # of the index

    def __str__(self) -> str:
        index = "" if self.index is None else f"_{{{self.index}}}"
        return self.letter + index + (f"^{self.mark}" if self.mark else "")


def formulas(text: str) -> list[str]:
    """Every formula of a page of MyST Markdown, without its dollars."""
    text = BLOCK.sub(lambda block: f"$${block['body']}$$", CODE.sub("", text))
    spans = [f"${m['content']}$" if m["role"] == "math" else m[0] for m in SPAN.finditer(text)]
    return [s.strip("$") for s in spans if s.startswith(("$", r"\begin"))]


def words(formula: str) -> list[str]:
    """Names that stand upright, but for an index or exponent."""
    return [m[1] for m in re.finditer(r"(?<![_^{])" + WORD.pattern, TEXT.sub(" ", formula))]


@cache
def symbols(formula: str) -> list[Symbol]:
    """Letters of a formula in their order, those of an exponent behind their own."""
    formula = TEXT.sub(" ", formula)
    if r"\int" in formula:
        formula = DIFFERENTIAL.sub(" ", formula)
    return _symbols(TOKEN.findall(WORD.sub(lambda m: rf"\upright{{{m[1]}}}", formula)))


def _group(tokens: list[str], at: int) -> tuple[list[str], int]:
    """The argument at a place, without its braces, and the place behind it."""
    if tokens[at : at + 1] != ["{"]:
        end = at + 1 + (tokens[at : at + 1] != [] and tokens[at] in FONTS | ACCENTS)
        return tokens[at:end], end
    depth, end = 1, at + 1
    while depth and end < len(tokens):
        depth += {"{": 1, "}": -1}.get(tokens[end], 0)
        end += 1
    return tokens[at + 1 : end - 1], end


def _letter(tokens: list[str], at: int) -> tuple[str, int]:
    """The letter at a place, with font and accents, and the place behind it; '' for none."""
    if tokens[at] in FONTS | ACCENTS:
        inner, end = _group(tokens, at + 1)
        if tokens[at] == r"\mathbf" and inner == ["1"]:
            return r"\mathbf 1", end
        name, last = _letter(inner, 0) if inner else ("", 0)
        return (f"{tokens[at]} {name}", end) if name and last == len(inner) else ("", at)
    is_letter = tokens[at] in LETTERS or re.fullmatch("[A-Za-z]", tokens[at])
    return (tokens[at], at + 1) if is_letter else ("", at)


def _symbols(tokens: list[str]) -> list[Symbol]:
    found, at = [], 0
    while at < len(tokens):
        if tokens[at] == r"\upright":  # a word: its letters are no symbols
            at = _group(tokens, at + 1)[1]
            continue
        letter, end = _letter(tokens, at)
        if not letter:
            at += 1
            continue
        index, mark, inside, above = None, None, [], []
        while end < len(tokens) and tokens[end] in {"_", "^", "'"}:
            if tokens[end] == "'":
                end += 1
                continue
            group, behind = _group(tokens, end + 1)
            if tokens[end] == "_":
                index, inside = _plain(group), group
            elif group[:1] and group[0] in MARKS and group[1:2] in ([], [r"\top"]):
                mark = "*" if group[0] == r"\star" else group[0]
            else:
                above = group
            end = behind
        found += [Symbol(letter, index, mark, tuple(_symbols(inside))), *_symbols(above)]
        at = end
    return found


def _plain(tokens: list[str]) -> str:
    kept = [t for t in tokens if t not in {"{", "}", r"\upright"}]
    spaced = [t + " " * (t[1:].isalpha() and n.isalpha()) for t, n in pairwise([*kept, ""])]
    return "".join(spaced)


@dataclass(frozen=True)
class Row:
    """A line of the page: what it explains, and for which chapters; None is the whole book."""

    names: tuple
    chapters: frozenset[str] | None


def rows(page: str, kind: str = "symbol") -> list[Row]:
    """Rows of the page's tables whose first column is of a kind: `symbol`, `word` or `free`."""
    found, head = [], []
    read = words if kind == "word" else lambda formula: symbols(formula)[:1]
    for line in page.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        head = head if cells and head else cells
        if cells != head and head[:1] == [kind] and not set(cells[0]) <= {"-", ":"}:
            names = tuple(chain.from_iterable(map(read, formulas(cells[0]))))
            where = dict(zip(head, cells, strict=True)).get("chapters")
            found.append(Row(names, None if where is None else chapters(where)))
    return [row for row in found if row.names]


def chapters(cell: str) -> frozenset[str]:
    """Read `1–3, 7, A`."""
    found = set()
    for part in re.split(r",\s*", cell):
        first, *last = part.split("–")
        found |= {str(n) for n in range(int(first), int(last[0]) + 1)} if last else {first}
    return frozenset(found - {""})


def fit(named: Symbol, used: Symbol) -> int:
    """How well a name of the page fits a symbol of the text; 0 for not at all."""
    if named.letter != used.letter or named.mark not in {None, used.mark}:
        return 0
    mark = 10 if named.mark else 0
    if named.index == used.index:
        return mark + 5
    if named.index is None:  # with any index
        return mark + 2
    if named.index not in ANY or r"\mathcal" in (used.index or ""):  # a set is no index
        return 0
    if used.index is None:  # of the client at hand
        return mark + 1
    return mark + 3 + ((named.index == "i") == bool(re.fullmatch("[ijl]|[1-9]", used.index)))


def explained(used: Symbol, chapter: str, page: list[Row]) -> tuple[list[Row], bool]:
    """Rows that explain a symbol best, and whether they name its index, as `d_w`."""
    scores = {
        row: max((fit(name, used), name.index == used.index) for name in row.names)
        for row in page
        if row.chapters is None or chapter in row.chapters or not chapter.isalnum()
    }
    best = max(scores.values(), default=(0, False))
    if best[0]:
        return [row for row, score in scores.items() if score == best], best[1]
    plain = re.sub(r"^\\(bar|dot) ", "", used.letter)
    return (
        ([], False)
        if plain == used.letter
        else explained(replace(used, letter=plain), chapter, page)
    )


def occurrences(text: str, chapter: str, page: list[Row]) -> dict[Symbol, list[Row]]:
    """Each symbol of a text with the rows that explain it."""
    found, waiting = {}, list(chain.from_iterable(map(symbols, formulas(text))))
    while waiting:
        used = waiting.pop()
        if used not in found:
            found[used], named = explained(used, chapter, page)
            waiting += [] if named and used.index not in ANY else used.inside
    return found


def faults(texts: dict[str, str], page: str) -> Iterator[str]:
    """What a page of notation lacks, says twice, or says of a chapter that does not use it."""
    table, free = rows(page), {name.letter for row in rows(page, "free") for name in row.names}
    named = [name for row in table for name in set(map(str, row.names))]
    yield from (f"Two rows explain ${n}$." for n in sorted(set(named)) if named.count(n) > 1)
    seen = defaultdict(set)
    for chapter, text in texts.items():
        for used, found in sorted(occurrences(text, chapter, table).items(), key=str):
            for row in found:
                seen[row].add(chapter)
            if len(found) > 1:
                yield f"Chapter {chapter}: ${used}$ has two meanings."
            elif not found and used.letter.split(" ")[-1] not in free:
                yield f"Chapter {chapter}: ${used}$ is not on the page."
    for row in table:
        for chapter in sorted((row.chapters or set()) - seen[row], key=order):
            yield f"Chapter {chapter} does not use ${row.names[0]}$."


def wordless(texts: dict[str, str], page: str) -> Iterator[str]:
    """Upright names that the page does not explain, or that no text uses."""
    listed = {word for row in rows(page, "word") for word in row.names}
    used = {w: chapter for chapter, text in texts.items() for f in formulas(text) for w in words(f)}
    yield from (f"Chapter {used[w]}: {w} is not on the page." for w in sorted(set(used) - listed))
    yield from (f"No chapter uses {w}." for w in sorted(listed - set(used)))


def table(texts: dict[str, str], page: str) -> str:
    """Symbols × chapters, as the texts use them."""
    columns = sorted(filter(str.isalnum, texts), key=order)
    listed = rows(page)
    seen = {c: set(chain(*occurrences(texts[c], c, listed).values())) for c in columns}
    lines = [" " * 34 + " ".join(f"{c:>2}" for c in columns)]
    for row in listed:
        marks = " ".join(" •" if row in seen[c] else "  " for c in columns)
        lines.append(f"{', '.join(map(str, row.names))[:33]:34}{marks}".rstrip())
    return "\n".join(lines)


def order(chapter: str) -> tuple[int, str]:
    return int(chapter) if chapter.isdigit() else 99, chapter


@cache
def book() -> dict[str, str]:
    """Text of each chapter by its number, of the appendix as A, of other pages by their file."""
    named = {_name(path): _text(path) for path in pages() if path != PAGE}
    return dict(sorted(named.items(), key=lambda item: order(item[0])))


def _name(path: Path) -> str:
    number = re.match(r"\d\d(?=_)", path.name)
    return str(int(number[0])) if number else "A" if "appendix" in path.stem else path.name


def _text(path: Path) -> str:
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    cells = notebooks.load(path)["cells"]
    return "\n\n".join(
        cell["source"] if cell["cell_type"] == "markdown" else labels(cell) for cell in cells
    )


def labels(cell: dict) -> str:
    """Formulas in strings of a code cell, as a figure's axes show them, and in its caption."""
    code = re.sub(r"^([ \t]*)[%!].*", r"\1pass", cell["source"], flags=re.MULTILINE)
    nodes = list(ast.walk(ast.parse(code)))
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    found = []
    for node in nodes:
        if isinstance(node, ast.JoinedStr):  # what it computes is a number
            values = node.values
            found.append("".join(v.value if isinstance(v, ast.Constant) else "0" for v in values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += [] if id(node) in parts else [node.value]
    figure = cell["metadata"].get("mystnb", {}).get("figure", {})
    texts = [*found, figure.get("caption", "")]
    return "\n\n".join(f"${formula}$" for text in texts for formula in formulas(text))


if __name__ == "__main__":
    sys.exit(print(table(book(), PAGE.read_text(encoding="utf-8"))))
