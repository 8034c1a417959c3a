"""Glyphs: real to recognise, and the same for everybody."""

import hashlib
import random
import string
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.ft2font import FT2Font, LoadFlags
from sklearn.neighbors import KNeighborsClassifier

import fedlib as fl
from fedlib.glyphs import _FONTS, _OWN_FONTS, _TEX_FONTS, _draw, _ink, _outline


@pytest.fixture(scope="module")
def glyphs():
    return fl.load_glyphs(per_class=30, seed=0)


def test_glyphs_are_balanced_and_labelled_in_order(glyphs):
    assert glyphs.images.shape == (62 * 30, 1, 16, 16)
    assert "".join(glyphs.class_names) == string.ascii_letters + string.digits
    np.testing.assert_array_equal(glyphs.labels, np.repeat(np.arange(62), 30))
    assert len(np.unique(glyphs.images, axis=0)) == len(glyphs)


def test_glyphs_pixels_are_bytes(glyphs):
    levels = glyphs.images * np.float64(255)
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
    np.testing.assert_array_equal(glyphs.images, (np.rint(levels) / 255).astype(np.float32))


def test_a_glyph_depends_on_its_seed_and_character_only(glyphs):
    fewer = fl.load_glyphs("7Qa", per_class=10, seed=0)
    for label, character in enumerate("7Qa"):
        expected = glyphs.of_classes(character).images[:10]
        np.testing.assert_array_equal(fewer.of_classes([label]).images, expected)
    other = fl.load_glyphs("7Qa", per_class=10, seed=1)
    assert not np.any(np.all(fewer.images == other.images, axis=(1, 2, 3)))


def test_glyphs_leave_matplotlib_and_global_generators_alone(as_readers_run_it):
    before = dict(matplotlib.rcParams), np.random.get_state()[1].copy(), random.getstate()
    fl.load_glyphs("a", per_class=2, seed=0)
    after = dict(matplotlib.rcParams), np.random.get_state()[1].copy(), random.getstate()
    assert before[0] == after[0]
    np.testing.assert_array_equal(before[1], after[1])
    assert before[2] == after[2]


def test_every_font_draws_every_default_character_inside_its_page():
    for drawings in _draw(string.ascii_letters + string.digits):
        assert len(drawings) == len(_FONTS + _TEX_FONTS)
        assert drawings.max(axis=(1, 2, 3)).min() > 0.3  # there is ink
        edge = np.ones(drawings.shape[2:], bool)
        edge[8:-8, 8:-8] = False
        assert drawings[:, :, edge].max() < 0.01  # and none is cut off


def test_glyphs_are_a_real_recognition_task(glyphs):
    letters = "acehkmqsxz"
    train = fl.load_glyphs(letters, per_class=60, seed=1)
    test = glyphs.of_classes(letters)
    neighbours = KNeighborsClassifier(1).fit(train.images.reshape(600, -1), train.labels)
    accuracy = neighbours.score(test.images.reshape(300, -1), test.labels)
    assert 0.4 < accuracy < 0.9  # far above chance (0.1), and not settled by comparing pixels


def test_glyphs_are_the_same_under_every_version_of_matplotlib():
    """Whose FreeType is another one in 3.10 and in 3.11; `make versions` runs this with both."""
    images = fl.load_glyphs(
        string.ascii_letters + string.digits + "é€Ж&", per_class=2, seed=0
    ).images
    digest = hashlib.sha256(np.rint(255 * images).astype(np.uint8).tobytes()).hexdigest()
    assert digest == "03838b7d48204c29c41db11495e6680ea30b8967572a70b871684cb4adeeaddd"


def test_every_font_is_there_without_the_newest_matplotlib():
    """Matplotlib 3.10 has all of them but one, which fedlib brings, with its licence."""
    own = Path(fl.glyphs.__file__).parent / "fonts"
    assert {path.stem for path in own.glob("*.ttf")} == set(_OWN_FONTS) == {"cmti10"}
    assert "Permission to copy and distribute" in (own / "LICENSE-BaKoMa.txt").read_text()


def test_ink_is_as_freetype_draws_it():
    """FreeType sums the same areas in whole numbers: a few levels of 255 apart, on curves."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSerif.ttf"
    font = FT2Font(str(path))
    for character in "aQ8é":
        ours = _ink(_outline(font, character))
        font.set_size(60, 72)
        font.set_text(character, 0, flags=LoadFlags.NO_HINTING)
        font.draw_glyphs_to_bitmap(antialiased=True)
        theirs = np.asarray(font.get_image()) / 255
        theirs = theirs[np.ix_(theirs.any(axis=1), theirs.any(axis=0))]
        ours = ours[np.ix_(ours.any(axis=1), ours.any(axis=0))]
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < 0.1
        assert abs(ours.sum() / theirs.sum() - 1) < 2e-3


def test_ink_is_the_area_inside_the_outline():
    """A square with a square hole, between the pixels; and a curve, against its integral."""
    corners = np.array([[0, 0], [0, 10.5], [8.25, 10.5], [8.25, 0]])
    hole = (corners[::-1] - corners.mean(axis=0)) / 2 + corners.mean(axis=0)
    start = np.concatenate([corners, hole])
    end = np.concatenate([np.roll(part, -1, axis=0) for part in (corners, hole)])
    square = np.stack([start, (start + end) / 2, end])
    assert _ink(square).sum() == pytest.approx(8.25 * 10.5 * 3 / 4, rel=5e-3)
    arch = np.array([[[0, 0], [20, 0]], [[10, 20], [10, 0]], [[20, 0], [0, 0]]])
    assert _ink(arch).sum() == pytest.approx(2 / 3 * 20 * 10, rel=5e-3)


def test_glyphs_beyond_ascii():
    assert fl.load_glyphs("é€Ж", per_class=2, seed=0).class_names == ("é", "€", "Ж")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"per_class": 0}, ValueError, "Invalid per_class=0: .* Use per_class >= 1"),
        ({"per_class": 1, "seed": -1}, ValueError, "Invalid seed=-1"),
        ({"per_class": 1, "characters": ""}, ValueError, "at least one"),
        ({"per_class": 1, "characters": ["ab"]}, ValueError, "single characters"),
        ({"per_class": 1, "characters": "aba"}, ValueError, "a name occurs twice"),
        ({"per_class": 1, "characters": "a b"}, ValueError, "' ': no font draws it"),
        ({"per_class": 1, "characters": "\U0010ffff"}, ValueError, "no font draws it"),
        ({"per_class": 1, "characters": [1]}, ValueError, "single characters"),
        ({"per_class": 1, "characters": 5}, TypeError, "Invalid characters=5: .*single characters"),
    ],
)
def test_glyphs_refuse(as_readers_run_it, arguments, error, message):
    with pytest.raises(error, match=message):
        fl.load_glyphs(**{"seed": 0} | arguments)


def test_more_glyphs_than_fit_are_refused():
    with pytest.raises(ValueError, match="Invalid per_class=1099511627776: must be at most"):
        fl.load_glyphs("a", per_class=2**40, seed=0)
