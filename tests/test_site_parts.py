"""What the site's own Sphinx extension makes of a name, a citation and a paragraph."""

import pytest
from docutils import nodes
from pybtex.database import Entry, Person
from site_parts import AuthorYearLabels, css_string, description, plain, previews


def entry(*authors: str, year: str = "2017") -> Entry:
    return Entry("misc", {"year": year}, persons={"author": [Person(author) for author in authors]})


@pytest.mark.parametrize(
    ("authors", "label"),
    [
        (["Konečný, Jakub"], "Konečný, 2017"),
        (['{\\AA}ke Bj{\\"o}rck', "Gene Golub"], "Björck and Golub, 2017"),
        (["de la Cruz, Ana", "Brown, B", "Clark, C"], "de la Cruz et al., 2017"),
        (["{The authors of a library}"], "The authors of a library, 2017"),
    ],
)
def test_label_is_who_and_when(authors, label):
    assert list(AuthorYearLabels().format_labels([entry(*authors)])) == [label]


def test_equal_labels_get_letters_in_their_order():
    entries = [entry("A, B"), entry("C, D"), entry("A, B"), entry("A, B", year="2018")]
    labels = list(AuthorYearLabels().format_labels(entries))
    assert labels == ["A, 2017a", "C, 2017", "A, 2017b", "A, 2018"]


def paragraph(*parts) -> nodes.paragraph:
    return nodes.paragraph("", "", *parts)


def test_plain_text_has_no_commands_of_formulas():
    text = paragraph(
        nodes.Text("A run\nlives in "), nodes.math("", r"2\, \mathrm{k}"), nodes.Text(" m")
    )
    assert plain(text) == "A run lives in 2, k m"


def test_description_is_whole_sentences_of_the_first_long_paragraph():
    first = "Hospitals hold data that must not leave them, and they can still train a model. "
    document = nodes.section(
        "", paragraph(nodes.Text("Short.")), paragraph(nodes.Text(first + "x" * 300))
    )
    assert description(document) == first.strip()
    assert description(nodes.section()) == ""
    endless = nodes.section("", paragraph(nodes.Text("word " * 100)))
    assert len(description(endless)) <= 201
    assert description(endless).endswith("word …")


@pytest.mark.parametrize("text", ['say "x"', "a\\b", "</style><script>", "two\nlines"])
def test_css_string_cannot_be_left(text):
    inside = css_string(text)[1:-1]
    assert not set(inside) & set('"<\n')


def test_preview_is_free_of_links_ids_and_buttons():
    page = """<article><div class="proof theorem admonition" id="thm-x"><p>T
    <a class="headerlink" href="#thm-x">#</a></p><div id="inner">See <a href="y.html">Y</a>
    <img src="../_images/z.png"><button>b</button></div></div></article>"""
    ((address, html),) = previews("book/p.html", page).items()
    assert address == "book/p.html#thm-x"
    assert "See Y" in html
    assert 'src="_images/z.png"' in html
    assert not any(part in html for part in ("<a", "id=", "<button"))
