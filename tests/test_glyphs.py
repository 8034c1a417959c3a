"""Glyphs: real to recognise, and the same for everybody."""

import random
import string

import matplotlib
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

import fedlib as fl
from fedlib.glyphs import _FONTS, _TEX_FONTS, _draw


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
    ],
)
def test_glyphs_refuse(arguments, error, message):
    with pytest.raises(error, match=message):
        fl.load_glyphs(**{"seed": 0} | arguments)
