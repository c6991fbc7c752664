"""`blackbox data`: downloads that resume, checksums, and archives from which nothing unexpected comes."""

import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from tasks.errors import DataError
from tasks.image_classification.data import cifar, download
from tasks.image_classification.data.download import extract, fetch
from tests.tasks.image_classification.data.small_files import SMALL10, SMALL100, archive, contents


@pytest.fixture
def site():
    """A server of one file; `site.breaks_after` bytes it hangs up, `site.ranges` it may not know."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers.get("Range")
            server.asked.append(asked)
            if server.status != 200:
                self.send_error(server.status)
                return
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
            if start >= len(server.content):
                self.send_error(416)
                return
            rest = server.content[start:]
            self.send_response(206 if asked and server.ranges else 200)
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest[: server.breaks_after])

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.status, server.ranges, server.breaks_after, server.content = [], 200, True, None, b""
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def served(site, source=SMALL10):
    site.content, source = archive(source)
    return replace(source, site=site.url)


@pytest.mark.parametrize("source", [SMALL10, SMALL100], ids=lambda source: source.name)
def test_what_is_loaded_can_be_read(source, site, tmp_path):
    said = []
    source = served(site, source)
    assert fetch(source, tmp_path / "data", say=said.append) == tmp_path / "data" / source.folder
    train, _ = cifar.read(source, tmp_path / "data")
    pixels = np.concatenate([contents(source)[1][name][0] for name, _ in source.train])
    assert np.array_equal(train.pixels.numpy(), pixels)
    names = sorted(path.name for path in (tmp_path / "data").rglob("*") if path.is_file())
    assert names == sorted([source.archive, *(name for name, _ in (*source.train, *source.test))])
    assert [source.url in said[0], source.folder in said[-1]] == [True, True]


def test_a_second_time_nothing_is_loaded(site, tmp_path):
    source = served(site)
    fetch(source, tmp_path, say=lambda line: None)
    (tmp_path / source.archive).unlink()
    fetch(source, tmp_path, say=lambda line: None)
    assert site.asked == [None]


def test_a_download_that_broke_off_goes_on_from_its_end(site, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "CHUNK", 500)  # what of a chunk has come is lost
    source = served(site)
    said = []
    site.breaks_after = 1000
    with pytest.raises(DataError, match="1,000 bytes are kept; the next attempt goes on from there"):
        fetch(source, tmp_path, say=said.append)
    with pytest.raises(DataError, match="2,000 bytes are kept"):
        fetch(source, tmp_path, say=said.append)
    assert [path.name for path in tmp_path.iterdir()] == [f"{source.archive}.part"]
    assert (tmp_path / f"{source.archive}.part").read_bytes() == site.content[:2000]
    site.breaks_after = None
    fetch(source, tmp_path, say=said.append)
    assert site.asked == [None, "bytes=1000-", "bytes=2000-"]
    assert "going on from byte 2,000." in said[2]
    assert (tmp_path / source.archive).read_bytes() == site.content
    assert not (tmp_path / f"{source.archive}.part").exists()


def test_a_server_without_ranges_begins_anew(site, tmp_path):
    source = served(site)
    (tmp_path / f"{source.archive}.part").write_bytes(site.content[:500])
    site.ranges = False
    fetch(source, tmp_path, say=lambda line: None)
    assert (tmp_path / source.archive).read_bytes() == site.content


def test_a_part_that_is_the_whole_needs_no_byte_more(site, tmp_path):
    source = served(site)
    (tmp_path / f"{source.archive}.part").write_bytes(site.content)
    fetch(source, tmp_path, say=lambda line: None)
    assert site.asked == [f"bytes={len(site.content)}-"]


@pytest.mark.parametrize("part", [b"", b"another file's beginning", bytes(10**6)])
def test_another_file_is_refused_and_deleted(part, site, tmp_path):
    source = replace(served(site), md5="0" * 32) if not part else served(site)
    (tmp_path / f"{source.archive}.part").write_bytes(part)
    with pytest.raises(DataError, match=f"expected a file of md5 {source.md5}, got another"):
        fetch(source, tmp_path, say=lambda line: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [404, 503, None])
def test_without_the_site_one_is_told_what_to_do(status, site, tmp_path):
    source = served(site)
    if status is None:
        source = replace(source, site="http://127.0.0.1:9")
    else:
        site.status = status
    with pytest.raises(DataError) as refused:
        fetch(source, tmp_path, say=lambda line: None)
    words = [source.url, source.archive, source.md5, f"blackbox data cifar10 --data {tmp_path}"]
    assert [word for word in words if word not in str(refused.value)] == []


def test_an_archive_that_was_put_there_needs_no_network(tmp_path):
    content, source = archive(SMALL10)
    source = replace(source, site="http://127.0.0.1:9")
    (tmp_path / source.archive).write_bytes(content)
    fetch(source, tmp_path, say=lambda line: None)
    assert len(cifar.read(source, tmp_path)[0]) == 20


def test_an_archive_of_another_checksum_is_not_opened(tmp_path):
    content, source = archive(SMALL10)
    (tmp_path / source.archive).write_bytes(content[:-1])
    with pytest.raises(DataError, match=rf"expected md5 {source.md5}, got [0-9a-f]{{32}}"):
        fetch(source, tmp_path, say=lambda line: None)
    assert not (tmp_path / source.folder).exists()


def test_nothing_unexpected_leaves_an_archive(tmp_path):
    files = contents(SMALL10)[0]
    outside = {
        "../outside.bin": b"1",
        "/absolute.bin": b"2",
        f"{SMALL10.folder}/../up.bin": b"3",
        "other.bin": b"4",
    }
    content, source = archive(SMALL10, outside | files)
    data = tmp_path / "data"
    data.mkdir()
    (data / source.archive).write_bytes(content)
    extract(source, data / source.archive, data)
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {f"data/{name}" for name in files} | {f"data/{source.archive}"}


FIRST = "cifar-10-batches-bin/data_batch_1.bin"


@pytest.mark.parametrize(
    ("change", "links", "words"),
    [
        ({FIRST: None}, (), [FIRST, "found none"]),
        ({FIRST: None}, ((FIRST, "/etc/passwd"),), [FIRST, "found none"]),
    ],
)
def test_an_archive_with_other_files_is_refused(change, links, words, tmp_path):
    files = {
        name: content for name, content in (contents(SMALL10)[0] | change).items() if content is not None
    }
    content, source = archive(SMALL10, files, links)
    (tmp_path / source.archive).write_bytes(content)
    with pytest.raises(DataError) as refused:
        extract(source, tmp_path / source.archive, tmp_path)
    assert [word for word in [*words, source.archive] if word not in str(refused.value)] == []


@pytest.mark.parametrize("content", [b"no archive", b""])
def test_what_is_no_archive_is_refused(content, tmp_path):
    (tmp_path / SMALL10.archive).write_bytes(content)
    with pytest.raises(DataError, match=r"expected a readable \.tar\.gz"):
        extract(SMALL10, tmp_path / SMALL10.archive, tmp_path)


def test_the_command_loads_and_its_mistakes_are_sentences(site, tmp_path, monkeypatch, capsys):
    from tasks import cli

    monkeypatch.setitem(cifar.SOURCES, "cifar10", served(site))
    assert cli.main(["data", "cifar10", "--data", str(tmp_path)]) == 0
    assert (tmp_path / SMALL10.folder / "test_batch.bin").exists()
    site.status = 404
    assert cli.main(["data", "cifar10", "--data", str(tmp_path / "other")]) == 1
    assert capsys.readouterr().err.startswith(f"blackbox: {site.url}/{SMALL10.archive}: expected to load it")
    assert cli.main(["data", "cifar11"]) == 2


def test_the_command_knows_every_source():
    from typing import get_args, get_type_hints

    from tasks.commands import DataCommand

    assert set(get_args(get_type_hints(DataCommand)["name"])) == set(cifar.SOURCES)
