"""One letter has one meaning: book/notation.md explains the mathematics of all pages."""

import pytest
from notation import PAGE, book, faults, labels, rows, symbols, table, wordless


def test_every_symbol_of_the_book_has_one_meaning_where_it_is_used():
    found = list(faults(book(), PAGE.read_text(encoding="utf-8")))
    assert not found, "Change book/notation.md or the text:\n" + "\n".join(found)


def test_every_word_in_formulas_is_on_the_page():
    assert not list(wordless(book(), PAGE.read_text(encoding="utf-8")))


def test_the_tables_show_a_mark_for_every_chapter_that_the_page_lists():
    page = PAGE.read_text(encoding="utf-8")
    listed = sum(len(row.chapters) for row in rows(page))
    assert table(book(), page).count("•") == listed > 500


SMALL = r"""
| symbol | chapters | meaning |
|---|---|---|
| $x$ | 1–3 | an input |
| $\theta$, $\theta_{i,s}$ | 1–3 | parameters |
| $\theta_i=B_*w_i^*$ | 2 | a truth |
| $B_*$, $w_i^*$ | 2 | its parts |
| $d_w$ | 2 | a distance |
| $i$, $s$ | 1, 2 | indices |

| free | for |
|---|---|
| $u$ | a vector |
"""
TEXTS = {
    "1": r"The server adds $\theta_{i,s}(x)$ and $\bar\theta$.",
    "2": r"$\theta_i=B_*w_i^*$, but $\theta_{i,0}$; $x^2$ is at most $d_w$ times $\hat u_s$.",
    "3": r"`$y$` is code, and $\text{no}$ word is a symbol of $\theta_0=x'$ or $\max_x u$.",
}
MISSING = "Chapter {}: ${}$ is not on the page.".format


def test_a_page_that_explains_all_has_no_faults():
    assert list(faults(TEXTS, SMALL)) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("$x^2$", "$x^k$", MISSING(2, "k")),
        ("$x^2$", r"$\hat x$", MISSING(2, r"\hat x")),
        ("$x^2$", r"$x\mathcal{S}$", MISSING(2, r"\mathcal S")),
        ("$x^2$", "$$x\n\\frac y2$$", MISSING(2, "y")),
        ("$x^2$", "$x$\n\n```{math}\ny\n```\n", MISSING(2, "y")),
        ("$x^2$", "$x$ {math}`y`", MISSING(2, "y")),
        ("$d_w$", "$d_v$", MISSING(2, "d_{v}")),
        (r"$\bar\theta$", r"$\bar w_s^*$", MISSING(1, r"\bar w_{s}^*")),
        ("$\\theta_0", "$B_*", MISSING(3, "B_{*}")),
        ("(x)", "()", "Chapter 1 does not use $x$."),
    ],
)
def test_a_text_that_the_page_does_not_explain_is_found(old, new, fault):
    texts = {chapter: text.replace(old, new) for chapter, text in TEXTS.items()}
    assert texts != TEXTS
    assert fault in faults(texts, SMALL)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("| 1–3 | an input", "| 1–4 | an input", "Chapter 4 does not use $x$."),
        ("| $i$, $s$", "| $x$, $i$, $s$", "Two rows explain $x$."),
        ("| $i$, $s$", "| $x$, $i$, $s$", "Chapter 2: $x$ has two meanings."),
        ("| $u$", "| $v$", MISSING(2, r"\hat u_{s}")),
        ("| 2 | a distance", "| 1 | a distance", MISSING(2, "d_{w}")),
        ("| 2 | a distance", "| 1 | a distance", "Chapter 1 does not use $d_{w}$."),
    ],
)
def test_a_page_that_lacks_or_repeats_or_is_stale_is_found(old, new, fault):
    assert old in SMALL
    assert fault in faults(TEXTS, SMALL.replace(old, new))


def test_words_are_compared_both_ways():
    page = "| word | meaning |\n|---|---|\n| $\\mathrm{tr}$, $\\operatorname{col}$ | … |\n"
    texts = {"1": r"$\operatorname{rank}A\le\mathrm{tr}_i B^{\mathrm{rep}}$"}
    assert list(wordless(texts, page)) == [
        MISSING(1, "rank").replace("$", ""),
        "No chapter uses col.",
    ]


@pytest.mark.parametrize(
    ("formula", "found"),
    [
        (r"\alpha a_{i,s}^{\tau}", [r"\alpha", "a_{i,s}", r"\tau"]),
        (r"\bar{W}_{\mathcal S}^{*\top}", [r"\bar W_{\mathcal S}^*"]),
        (r"\hat{\mathcal C}_t'^2\mathbf 1", [r"\hat \mathcal C_{t}", r"\mathbf 1"]),
        (r"\mathrm{dist}(B_{*\perp})\text{ if }\le x", [r"B_{*\perp}", "x"]),
        (r"\mu_{\mathrm{prox}}\theta_{\text{no}}", [r"\mu_{prox}", r"\theta_{}"]),
        (r"\frac\mu2\sum_{j<l}^n", [r"\mu", "j", "l", "n"]),
        (r"\int_0^1\frac{dx}{1-x}", ["x", "x"]),
    ],
)
def test_symbols_of_a_formula(formula, found):
    assert [str(symbol) for symbol in symbols(formula)] == found


def test_labels_of_figures_and_captions_are_read():
    cell = {
        "source": "%pip install x\nax.set(xlabel=r'$V_t$', title=rf'$\\tau={tau}$ of \\$5')\n'$'",
        "metadata": {"mystnb": {"figure": {"caption": "Here $\\hat w$ is blue."}}},
    }
    assert set(labels(cell).split("\n\n")) == {r"$\tau=0$", "$V_t$", r"$\hat w$"}
