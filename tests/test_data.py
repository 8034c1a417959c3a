"""Images: what an `ImageSet` admits, and the scanned digits."""

import numpy as np
import pytest

import fedlib as fl


def image_set(**changes):
    images = np.linspace(0, 1, 5 * 2 * 3 * 4, dtype=np.float32).reshape(5, 2, 3, 4)
    labels = np.array([0, 1, 2, 1, 0])
    arguments = {"images": images, "labels": labels, "class_names": ["x", "y", "z"], "name": "toy"}
    return fl.ImageSet(**arguments | changes)


def test_image_set_describes_itself():
    toy = image_set()
    assert len(toy) == 5
    assert toy.image_shape == (2, 3, 4)
    assert toy.num_classes == 3
    assert toy.class_names == ("x", "y", "z")
    assert repr(toy) == "ImageSet(toy: 5 images 2x3x4, 3 classes)"
    with pytest.raises(AttributeError):
        toy.name = "other"


def test_select_keeps_order_and_classes():
    toy = image_set()
    chosen = toy.select([3, 0])
    np.testing.assert_array_equal(chosen.images, toy.images[[3, 0]])
    np.testing.assert_array_equal(chosen.labels, [1, 0])
    assert chosen.class_names == toy.class_names


@pytest.mark.parametrize("classes", [[2, 0], ["z", "x"], ["z", 0], "zx"])
def test_of_classes_relabels_in_the_order_given(classes):
    toy = image_set()
    chosen = toy.of_classes(classes)
    np.testing.assert_array_equal(chosen.images, toy.images[[0, 2, 4]])
    np.testing.assert_array_equal(chosen.labels, [1, 0, 1])
    assert chosen.class_names == ("z", "x")


def with_value(value):
    images = np.zeros((5, 2, 3, 4), np.float32)
    images[3, 1, 2, 0] = value
    return images


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": [[1.0]]}, TypeError, "Invalid images of type list: .*float32.* Use"),
        ({"images": np.zeros((5, 2, 3, 4), np.uint8)}, TypeError, "of type uint8: .* Use .*scaled"),
        ({"labels": np.zeros(5)}, TypeError, r"Invalid labels of type float64: .*astype"),
        ({"images": np.zeros((5, 24), np.float32)}, ValueError, r"images.shape=\(5, 24\): .*four"),
        ({"images": np.zeros((0, 1, 2, 2), np.float32)}, ValueError, "four positive sizes"),
        ({"labels": np.zeros(4, np.int64)}, ValueError, r"labels.shape=\(4,\): 5 images"),
        ({"images": with_value(np.nan)}, ValueError, "not finite"),
        ({"images": with_value(np.inf)}, ValueError, "not finite"),
        ({"images": with_value(255.0)}, ValueError, r"in \[0, 255\]: .*\[0, 1\].* Use .*/ 255"),
        ({"images": with_value(-0.5)}, ValueError, r"in \[-0.5, 0\]"),
        ({"labels": np.array([0, 1, 2, 1, 3])}, ValueError, r"in 0..3: 3 class names. Use .*0..2"),
        ({"labels": np.array([0, 1, 2, 1, -1])}, ValueError, r"in -1..2"),
        ({"class_names": ["x", "y", "x"]}, ValueError, "a name occurs twice"),
        ({"class_names": ["x", "y"]}, ValueError, "2 class names"),
    ],
)
def test_image_set_refuses(changes, error, message, as_readers_run_it):
    with pytest.raises(error, match=message):
        image_set(**changes)


@pytest.mark.parametrize(
    ("method", "argument", "error", "message"),
    [
        ("select", np.ones(4, bool), ValueError, "a mask of 4 for 5"),
        ("select", [], ValueError, "at least one"),
        ("select", [5], ValueError, r"Use positions 0\.\.4"),
        ("of_classes", {"x", "y"}, TypeError, "not in a row"),
        ("of_classes", [True], TypeError, "True is no class"),
        ("select", [-1], ValueError, r"Use positions 0\.\.4"),
        ("of_classes", ["w"], ValueError, "'w': toy has no such class. Use 0..2 or a name"),
        ("of_classes", [3], ValueError, "3: toy has no such class"),
        ("of_classes", ["x", 0], ValueError, "occurs twice"),
        ("of_classes", [], ValueError, "no images"),
    ],
)
def test_image_set_refuses_choices(method, argument, error, message):
    with pytest.raises(error, match=message):
        getattr(image_set(), method)(argument)


def test_digits_are_scikit_learns():
    digits = fl.load_digits()
    assert digits.images.shape == (1797, 1, 8, 8)
    assert (digits.images.min(), digits.images.max()) == (0, 1)
    assert digits.class_names == tuple("0123456789")
    assert set(np.bincount(digits.labels)) <= set(range(170, 190))


@pytest.mark.parametrize("argument", ["images", "labels"])
def test_masked_arrays_are_refused(argument, as_readers_run_it):
    masked = np.ma.array(getattr(image_set(), argument))
    with pytest.raises(TypeError, match=f"Invalid {argument}: some entries are masked"):
        image_set(**{argument: masked})
