"""Read MyST Markdown, and write it as plain Markdown that any notebook program shows.

What is not known here is refused, never passed on raw: a reader of the notebook editions must not
meet a directive or a role.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

# Marks of an exercise, as its classes say them: `:class: by-hand easy min-10`.
KINDS = ("warm-up", "by-hand", "proof", "code", "question")
LEVELS = ("easy", "medium", "hard")
STATEMENTS = ("theorem", "proposition", "lemma", "corollary")
# Numbered by chapter on the site, each kind by itself.
NUMBERED = (*STATEMENTS, "definition", "algorithm", "remark", "example", "axiom", "conjecture")
NUMBERED += ("criterion", "observation", "property", "assumption", "exercise")
BOXES = ("note", "tip", "hint", "important", "warning", "caution", "attention", "danger", "error")
BOXES += ("seealso", "admonition", "dropdown")

# A colon or backtick fence: marks, directive, title, its lines up to the same marks.
FENCE = re.compile(
    r"^(?P<marks>:{3,}|`{3,})\{(?P<name>[\w:-]+)\}[ \t]*(?P<title>[^\n]*)\n"
    r"(?P<body>.*?)^(?P=marks)[ \t]*(?:\n|\Z)",
    re.MULTILINE | re.DOTALL,
)
OPTION = re.compile(r"^:(?P<key>[\w-]+):[ \t]*(?P<value>[^\n]*)$", re.MULTILINE)
CODE = re.compile(r"^(`{3,})(?!\{).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
EQUATION = re.compile(
    r"\$\$(?P<formula>(?:(?!\$\$).)*)\$\$[ \t]*\((?P<label>[\w-]+)\)[ \t]*$",
    re.DOTALL | re.MULTILINE,
)
APART = re.compile(
    r"[-*+|>]\s|\d+[.)]\s|\$\$|```|<|#|\\begin"
)  # what does not go on a line of text
# Roles, code spans, displayed and inline formulas: what looks like markup inside them is none.
SPAN = re.compile(
    r"\{(?P<role>[\w:-]+)\}(?P<quote>`+)(?P<content>[^`]+)(?P=quote)"
    r"|(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)"
    r"|\$\$.*?\$\$|(?<!\\)\$(?:\\.|[^$\\])+\$"
    r"|\\begin\{(?P<env>align|equation|gather|multline)(?P<star>\*?)\}.*?\\end\{(?P=env)(?P=star)\}",
    re.DOTALL,
)
UNSEEN = re.compile(r"^\([\w-]+\)=[ \t]*\n|^%.*\n?|^\+\+\+.*\n?", re.MULTILINE)  # labels, comments
LINK = re.compile(r"\]\((?P<address>[^()\s]+)\)")


@dataclass(frozen=True)
class Directive:
    name: str
    title: str
    body: str
    options: dict[str, str]

    @property
    def kind(self) -> str:
        return self.name.removeprefix("prf:")

    @property
    def classes(self) -> list[str]:
        return self.options.get("class", "").split()

    @property
    def marks(self) -> str:
        """Kind, difficulty and minutes of an exercise, in words."""
        return marks(self.classes)

    @property
    def folded(self) -> bool:
        return self.name == "dropdown" or "dropdown" in self.classes


def marks(classes: list[str]) -> str:
    """What classes say of an exercise: `by hand · easy · 10 minutes`."""
    minutes = [f"{name[4:]} minutes" for name in classes if re.fullmatch(r"min-\d+", name)]
    said = [name.replace("by-hand", "by hand") for name in classes if name in (*KINDS, *LEVELS)]
    return " · ".join(said + minutes)


@dataclass(frozen=True)
class Target:
    """What a label stands for: its full name, as the site shows it, and its address there."""

    name: str
    address: str


def directive(found: re.Match) -> Directive:
    head = re.match(r"(:[\w-]+:[^\n]*\n)*", found["body"])[0]
    options = {option["key"]: option["value"].strip() for option in OPTION.finditer(head)}
    return Directive(found["name"], found["title"].strip(), found["body"][len(head) :], options)


def directives(text: str) -> list[Directive]:
    """Every directive of a Markdown text, nested ones too."""
    found = []
    for match in FENCE.finditer(text):
        found.append(directive(match))
        found += directives(found[-1].body)
    return found


def blocks(text: str) -> list[str | Directive]:
    """A text as it reads: Markdown and outermost directives in turn."""
    parts = split(FENCE, text)
    parts = [directive(part) if isinstance(part, re.Match) else part for part in parts]
    return [part for part in parts if isinstance(part, Directive) or part.strip()]


def split(pattern: re.Pattern, text: str) -> list[str | re.Match]:
    """The matches of a pattern, and what lies between them."""
    parts, start = [], 0
    for match in pattern.finditer(text):
        parts += [text[start : match.start()], match]
        start = match.end()
    return [*parts, text[start:]]


def one_line(formula: re.Match) -> str:
    """A formula without line breaks, which a quotation would begin by `>`, inside the formula."""
    return formula.group() if formula["ticks"] else " ".join(formula.group().split())


@dataclass(frozen=True)
class Plain:
    """A translator into plain Markdown, for one page.

    Args:
        targets: What every label of the book stands for.
        page: Address on the site of a file that is named relative to this page.
        citation: Author, year and address of an entry of the bibliography.
    """

    targets: dict[str, Target]
    page: Callable[[str], str]
    citation: Callable[[str], tuple[str, str, str]]

    def text(self, source: str) -> str:
        """Translate a Markdown text, directives and all."""
        parts = [
            self.directive(part) if isinstance(part, Directive) else self.prose(part).strip("\n")
            for part in blocks(source)
        ]
        return "\n\n".join(parts)

    def prose(self, source: str) -> str:
        """Translate Markdown without directives; code and formulas stay."""
        return "".join(
            part.group() if isinstance(part, re.Match) else self._outside_code(part)
            for part in split(CODE, source)
        )

    def directive(self, item: Directive) -> str:
        if item.kind == "proof":
            title = f" {self.prose(item.title)}" if item.title else ""
            return self._begin(f"*Proof{title}.*", item)
        if item.name == "solution":
            return self._details(f"Solution to {self.target(item.title).name}", item)
        if item.name == "exercise":
            said = f" *({item.marks})*" if item.marks else ""
            return self._begin(self.title(item) + said, item)
        if item.kind in NUMBERED:
            return self._quote(self._begin(self.title(item), item))
        if item.name in BOXES:
            title = self.prose(item.title) or item.name.title()
            if item.folded:
                return self._details(title, item)
            return self._quote(self._begin(f"**{title}.**", item))
        if item.name == "math":
            label = f" ({item.options['label']})" if "label" in item.options else ""
            return self.prose(f"$$\n{item.body.strip()}\n$$" + label)
        if item.name in {"code", "code-block"}:
            return f"```{item.title}\n{item.body}```"
        raise ValueError(
            f"Invalid directive {item.name}: the notebook editions cannot show it. "
            "Use one that tools/myst.py translates, or add it there."
        )

    def title(self, item: Directive) -> str:
        """Kind, number and title: `**Theorem 7.1 (FedAvg learns the representation).**`."""
        label = item.options.get("label")
        name = self.target(label).name if label else item.kind.title()
        if "nonumber" in item.options:
            return f"**{name}{'' if name.endswith(('?', '!')) else '.'}**"
        return f"**{name}{f' ({self.prose(item.title)})' if item.title else ''}.**"

    def target(self, label: str) -> Target:
        if label not in self.targets:
            raise ValueError(f"Invalid label {label}: nothing in the book has it. Use one that is.")
        return self.targets[label]

    def _body(self, item: Directive) -> str:
        return self.text(item.body).strip("\n")

    def _begin(self, title: str, item: Directive) -> str:
        body = self._body(item)
        return f"{title}{chr(10) * 2 if APART.match(body) else ' '}{body}"

    def _details(self, title: str, item: Directive) -> str:
        return f"<details><summary>{title}</summary>\n\n{self._body(item)}\n\n</details>"

    @staticmethod
    def _quote(text: str) -> str:
        text = SPAN.sub(one_line, text)
        return "\n".join(f"> {line}".rstrip() for line in text.split("\n"))

    def _equation(self, found: re.Match) -> str:
        number = self.target(found["label"]).name.removeprefix("Equation ").strip("()")
        return f"$${found['formula'].rstrip()} \\tag{{{number}}}\n$$"

    def _outside_code(self, source: str) -> str:
        text = ""
        for part in split(SPAN, EQUATION.sub(self._equation, source)):
            if isinstance(part, str):
                part = LINK.sub(self._link, UNSEEN.sub("", part))
            elif part["role"]:
                part = self._role(part)
            else:
                part = part.group()
            text += part
        return text

    def _link(self, found: re.Match) -> str:
        address = found["address"]
        if address.startswith("#"):
            address = self.target(address[1:]).address
        elif "://" not in address and not address.startswith("mailto:"):
            address = self.page(address)
        return f"]({address})"

    def _role(self, found: re.Match) -> str:
        name, content = found["role"], found["content"]
        shown = re.fullmatch(r"(?P<text>.*?)\s*<(?P<label>[^>]+)>", content, re.DOTALL)
        if name in {"cite:t", "cite:p", "cite"}:
            entries = [self.citation(key.strip()) for key in content.split(",")]
            if name == "cite:t":
                return ", ".join(f"[{who} ({year})]({where})" for who, year, where in entries)
            return f"({'; '.join(f'[{who}, {year}]({where})' for who, year, where in entries)})"
        if name in {"ref", "numref", "eq", "prf:ref"}:
            target = self.target(shown["label"] if shown else content)
            return f"[{shown['text'] if shown else target.name}]({target.address})"
        if name == "doc":
            page = shown["label"] if shown else content
            return f"[{shown['text'] if shown else page}]({self.page(f'{page}.md')})"
        if name == "math":
            return f"${content}$"
        raise ValueError(
            f"Invalid role {name}: the notebook editions cannot show it. "
            "Use one that tools/myst.py translates, or add it there."
        )
