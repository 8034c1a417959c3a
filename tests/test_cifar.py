"""CIFAR: the real files where they are, and how loading fails, on a tiny imitation."""

import errno
import gc
import hashlib
import http.server
import io
import os
import pickle
import socket
import tarfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pooch
import pytest

import fedlib as fl
from fedlib import cifar

# pooch leaves the socket of a failed download to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

# --- CIFAR: the real files --------------------------------------------------------------------


@pytest.fixture
def real(monkeypatch, tmp_path):
    """Skip unless FEDLIB_DATA holds the files asked for; never look elsewhere."""
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache")

    def require(*files):
        for file in files:
            if not Path(os.environ.get("FEDLIB_DATA", ""), file).is_file():
                pytest.skip(f"needs the real {file} in the folder named by FEDLIB_DATA")

    return require


# The channel means of these sets, as published in many training recipes.
@pytest.mark.parametrize(
    ("load", "split", "per_class", "means", "file"),
    [
        (fl.load_cifar10, "test", 1000, (0.4942, 0.4851, 0.4504), "cifar-10-batches-py/test_batch"),
        (fl.load_cifar100, "test", 100, (0.5088, 0.4874, 0.4419), "cifar-100-python/test"),
        (fl.load_cifar100, "train", 500, (0.5071, 0.4866, 0.4409), "cifar-100-python/train"),
    ],
)
def test_cifar_is_what_was_published(real, load, split, per_class, means, file):
    real(file)
    images = load(split)
    assert images.image_shape == (3, 32, 32)
    assert np.all(np.bincount(images.labels, minlength=images.num_classes) == per_class)
    channel_means = images.images.mean(axis=(0, 2, 3), dtype=np.float64)
    np.testing.assert_allclose(channel_means, means, atol=1e-4)


def test_cifar_class_names(real):
    real("cifar-10-batches-py/test_batch", "cifar-100-python/test")
    names = fl.load_cifar10("test").class_names
    assert " ".join(names) == "airplane automobile bird cat deer dog frog horse ship truck"
    fine, coarse = fl.load_cifar100("test"), fl.load_cifar100("test", coarse=True)
    assert (len(fine.class_names), len(coarse.class_names)) == (100, 20)
    np.testing.assert_array_equal(fine.images, coarse.images)
    pairs = {
        (fine.class_names[f], coarse.class_names[c])
        for f, c in zip(fine.labels, coarse.labels, strict=True)
    }
    assert len(pairs) == 100  # every class lies in one group
    assert ("trout", "fish") in pairs


def test_cifar10_says_which_batches_are_missing(real, monkeypatch):
    real("cifar-10-batches-py/data_batch_1")
    here = Path(os.environ["FEDLIB_DATA"], "cifar-10-batches-py")
    missing = [f"data_batch_{i}" for i in range(1, 6) if not (here / f"data_batch_{i}").is_file()]
    if not missing:
        pytest.skip("needs a FEDLIB_DATA that lacks some of CIFAR-10's training batches")
    monkeypatch.setattr(cifar, "_CIFAR10", cifar._CIFAR10._replace(url=nowhere()))
    with pytest.raises(fl.DataError) as caught:
        fl.load_cifar10("train")
    for i in range(1, 6):
        assert (f"data_batch_{i}" in str(caught.value)) == (f"data_batch_{i}" in missing)


# --- CIFAR: how loading fails, on a tiny imitation --------------------------------------------

FILES = ("meta", "train", "test")


def as_published(content):
    """Pickle as the official files were: by Python 2's NumPy, with bytes for text."""
    return pickle.dumps(content, protocol=3).replace(b"numpy._core.", b"numpy.core.")


def imitation():
    """The contents of CIFAR-100's files, if it had two classes and four images a split."""
    pixels = np.random.default_rng(0).integers(256, size=(2, 4, 3072), dtype=np.uint8)
    labels = {b"fine_labels": [0, 1, 1, 0], b"coarse_labels": [0, 0, 0, 0]}
    meta = {b"fine_label_names": [b"trout", b"shark"], b"coarse_label_names": [b"fish"]}
    splits = [{b"data": p, **labels} for p in pixels]
    return {
        f"cifar-100-python/{file}": as_published(content)
        for file, content in zip(FILES, [meta, *splits], strict=True)
    }


def write(folder, contents):
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def archive_of(contents, *, extra=(), link=None):
    """A .tar.gz of the files; `extra` members with their names, `link` a file that is a link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in [*contents.items(), *extra]:
            member = tarfile.TarInfo(name)
            if name == link:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
                content = b""
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def nowhere():
    """An address at which nobody answers, as with no network."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/archive"


class World:
    """A reader's machine: a cache, a FEDLIB_DATA folder, and the official site."""

    def __init__(self, monkeypatch, tmp_path):
        self.monkeypatch, self.cache, self.own = monkeypatch, tmp_path / "cache", tmp_path / "own"
        monkeypatch.setattr(pooch, "os_cache", lambda project: self.cache)
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.delenv("FEDLIB_DATA", raising=False)
        self.requests = 0
        self.publish(imitation(), url=nowhere())

    def publish(self, contents, *, url, archive=b""):
        md5 = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
        source = cifar._Source(url, hashlib.md5(archive).hexdigest(), md5)
        self.monkeypatch.setattr(cifar, "_CIFAR100", source)

    def set_own(self, contents):
        write(self.own, contents)
        self.monkeypatch.setenv("FEDLIB_DATA", str(self.own))

    def traces(self):
        return sorted(p.relative_to(self.cache).as_posix() for p in self.cache.rglob("*"))


@pytest.fixture
def world(monkeypatch, tmp_path):
    return World(monkeypatch, tmp_path)


@pytest.fixture
def serve(world):
    """Publish an archive on a local web server, which can lie about it."""
    servers = []

    def start(archive, *, sent=None, status=200):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                world.requests += 1
                self.send_response(status)
                self.send_header("Content-Length", str(len(archive)))
                self.end_headers()
                self.wfile.write(archive if sent is None else sent)

            def log_message(self, *args):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=partial(server.serve_forever, poll_interval=0.01)).start()
        url = f"http://127.0.0.1:{server.server_port}/archive"
        world.publish(imitation(), url=url, archive=archive)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
    gc.collect()  # here, where that warning is ignored


def check_imitation(images, split):
    raw = pickle.loads(imitation()[f"cifar-100-python/{split}"], encoding="bytes")[b"data"]
    np.testing.assert_array_equal(
        images.images[2, 1, 3, 5], np.float32(raw[2, 1024 + 96 + 5] / 255)
    )
    np.testing.assert_array_equal(np.rint(images.images * 255), raw.reshape(4, 3, 32, 32))
    np.testing.assert_array_equal(images.labels, [0, 1, 1, 0])
    assert images.class_names == ("trout", "shark")
    assert images.name == f"cifar100-{split}"


def test_only_the_files_asked_for_are_needed(world):
    files = imitation()
    del files["cifar-100-python/train"]
    world.set_own(files)
    check_imitation(fl.load_cifar100("test"), "test")
    assert not world.cache.exists()


def test_each_file_is_looked_for_in_fedlib_data_then_in_the_cache(world):
    files = imitation()
    world.set_own({"cifar-100-python/meta": files.pop("cifar-100-python/meta")})
    write(world.cache, files)
    check_imitation(fl.load_cifar100("train"), "train")


def test_download_is_extracted_once_and_nothing_else_is_kept(world, serve):
    serve(archive_of(imitation(), extra=[("cifar-100-python/readme.html", b"<p>")]))
    check_imitation(fl.load_cifar100("train"), "train")
    check_imitation(fl.load_cifar100("test"), "test")
    assert world.requests == 1
    assert world.traces() == ["cifar-100-python", *sorted(imitation())]


def test_download_shows_its_progress(world, serve, capsys):
    serve(archive_of(imitation()))
    fl.load_cifar100("test")
    assert "100%" in capsys.readouterr().err


def test_hostile_names_in_an_archive_are_never_written(world, serve, tmp_path):
    hostile = [("../escaped", b"!"), (str(tmp_path / "absolute"), b"!")]
    serve(archive_of(imitation(), extra=hostile))
    fl.load_cifar100("test")
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}
    assert world.traces() == ["cifar-100-python", *sorted(imitation())]


def fails(world, message, *, traces=(), split="train"):
    """Loading fails with one explained sentence, and leaves no more in the cache than before."""
    with pytest.raises(fl.DataError, match=message) as caught:
        fl.load_cifar100(split)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
    assert world.traces() == list(traces)


SET_OWN = "or set FEDLIB_DATA to a folder that holds the missing files"


def test_no_network(world):
    fails(world, rf"Cannot find cifar-100-python/meta, cifar-100-python/train in {world.cache}, ")
    fails(world, rf"cannot download http.*ConnectionError\). Connect to the network, {SET_OWN}")


def test_missing_file_names_both_places(world):
    files = imitation()
    del files["cifar-100-python/train"]
    world.set_own(files)
    fails(world, f"find cifar-100-python/train in FEDLIB_DATA={world.own} or {world.cache}, and")


@pytest.mark.parametrize("status", [404, 503])
def test_site_refuses(world, serve, status):
    serve(b"gone", status=status)
    fails(world, rf"cannot download .*HTTPError\). .*{SET_OWN}")


def test_download_is_interrupted(world, serve):
    archive = archive_of(imitation())
    serve(archive, sent=archive[: len(archive) // 2])
    fails(world, rf"cannot download .*Error\). Connect to the network, {SET_OWN}")


def test_download_is_not_the_official_archive(world, serve):
    archive = archive_of(imitation())
    serve(archive, sent=bytes(len(archive)))
    fails(world, rf"what came from .* is not the official archive. Load again, {SET_OWN}")


def test_reader_stops_the_download(world, monkeypatch):
    def stopped(url, known_hash, fname, path, **options):
        Path(path, fname).write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(pooch, "retrieve", stopped)
    with pytest.raises(KeyboardInterrupt):
        fl.load_cifar100("train")
    assert world.traces() == []


@pytest.mark.parametrize("fault", ["damaged", "absent", "link", "truncated"])
def test_archive_is_verified_file_by_file(world, serve, fault):
    files = imitation()
    if fault == "damaged":
        files["cifar-100-python/test"] += b"!"
    if fault == "absent":
        del files["cifar-100-python/test"]
    archive = archive_of(files, link="cifar-100-python/test" if fault == "link" else None)
    serve(archive[:-1000] if fault == "truncated" else archive)
    fails(world, "is not the official archive")


def test_disk_is_full(world, serve, monkeypatch):
    serve(archive_of(imitation()))
    wrote = Path.write_bytes

    def full(path, content):
        wrote(path, content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    fails(world, rf"cannot write to the cache {world.cache} \(No space left on device\). Make")


def test_cache_is_read_only(world, serve, monkeypatch):
    serve(archive_of(imitation()))

    def refuse(path, *args, **options):  # also when the tests run as root, whom chmod cannot stop
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    fails(world, rf"cannot write to the cache {world.cache} \(Permission denied\). .*{SET_OWN}")
    assert world.requests == 0


def test_cache_lies_under_a_file(world, serve, tmp_path):
    serve(archive_of(imitation()))
    (tmp_path / "file").write_text("not a folder")
    world.cache = tmp_path / "file" / "cache"
    fails(world, r"cannot write to the cache .*\(Not a directory\). Make it writable")


@pytest.mark.parametrize("place", ["own", "cache"])
def test_wrong_checksum(world, place):
    files = imitation()
    files["cifar-100-python/train"] += b"!"
    world.set_own(files) if place == "own" else write(world.cache, files)
    folder = getattr(world, place)
    before = world.traces()
    message = rf"File {folder}/cifar-100-python/train has MD5 \w+, not the published \w+. Delete it"
    fails(world, message, traces=before)


class Calls:
    """Pickles as a call of `os.mkdir`: an attack that would leave a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_malicious_pickle_with_a_right_checksum_calls_nothing(world, tmp_path, protocol):
    attack = pickle.dumps({"data": Calls(tmp_path / "mark")}, protocol=protocol)
    files = imitation() | {"cifar-100-python/train": attack}
    world.publish(files, url=nowhere())
    world.set_own(files)
    fails(world, r"train is not a whole and safe pickle \(it asks for \w+.mkdir, which is not")
    assert not (tmp_path / "mark").exists()


def test_malicious_pickle_is_not_even_decoded_when_the_checksum_is_wrong(world, tmp_path):
    attack = pickle.dumps(Calls(tmp_path / "mark"))
    world.set_own(imitation() | {"cifar-100-python/train": attack})
    fails(world, "has MD5")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("length", [0, 1, 50, 5000])
def test_truncated_pickle_with_a_right_checksum(world, length):
    files = imitation()
    files["cifar-100-python/train"] = files["cifar-100-python/train"][:length]
    world.publish(files, url=nowhere())
    world.set_own(files)
    fails(world, r"File .*/train is not a whole and safe pickle \(.+\). Delete it and load again")


def test_unreadable_file(world, monkeypatch):
    world.set_own(imitation())

    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    fails(world, r"Cannot read .*/meta \(Permission denied\). Make it readable")


@pytest.mark.parametrize("load", [fl.load_cifar10, fl.load_cifar100])
def test_unknown_split(load):
    with pytest.raises(ValueError, match="Invalid split='valid': .* Use split='train' or split='t"):
        load("valid")


def test_a_home_that_is_not_known_is_told(monkeypatch):
    monkeypatch.setenv("FEDLIB_DATA", "~nouser/data")
    with pytest.raises(ValueError, match="Invalid FEDLIB_DATA='~nouser/data': its user's home"):
        fl.load_cifar10("test")
