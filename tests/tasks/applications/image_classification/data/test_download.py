"""`blackbox data`: downloads, checksums, and archives from which nothing gets elsewhere."""

import os
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from tasks.applications.image_classification.data import cifar
from tasks.applications.image_classification.data.cifar import fetch
from tasks.errors import DataError
from tests.tasks.applications.image_classification.data.small_files import (
    SMALL10,
    SMALL100,
    archive,
    contents,
)


@pytest.fixture
def site():
    """A server of one file; `site.breaks_after` bytes it hangs up."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked += 1
            if server.status != 200:
                self.send_error(server.status)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(server.content)))
            self.end_headers()
            self.wfile.write(server.content[: server.breaks_after])

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.status, server.breaks_after, server.content = 0, 200, None, b""
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
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
    own = [source.archive, "readme.html", *(name for name, _ in (*source.train, *source.test))]
    assert names == sorted(own)
    assert [source.url in said[0], source.folder in said[-1]] == [True, True]


def test_a_second_time_nothing_is_loaded_unless_a_file_is_damaged(site, tmp_path):
    source = served(site)
    fetch(source, tmp_path, say=lambda line: None)
    (tmp_path / source.archive).unlink()
    fetch(source, tmp_path, say=lambda line: None)
    assert site.asked == 1
    file = tmp_path / source.folder / "data_batch_3.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    fetch(source, tmp_path, say=lambda line: None)
    assert site.asked == 2 and file.read_bytes() == whole


def test_a_download_that_broke_off_leaves_nothing_behind(site, tmp_path):
    source = served(site)
    site.breaks_after = 1000
    with pytest.raises(DataError, match="try again"):
        fetch(source, tmp_path, say=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_another_file_is_refused_and_deleted(site, tmp_path):
    source = replace(served(site), md5="0" * 32)
    with pytest.raises(DataError, match=f"expected a file of md5 {source.md5}, got .* deleted; try again"):
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
    with pytest.raises(
        DataError, match=rf"expected a file of md5 {source.md5}, got [0-9a-f]{{32}}.*; delete it"
    ):
        fetch(source, tmp_path, say=lambda line: None)
    assert not (tmp_path / source.folder).exists()


def test_nothing_is_written_outside_of_the_folder(tmp_path):
    content, source = archive(SMALL10, {"../outside.bin": b"1"} | contents(SMALL10)[0])
    data = tmp_path / "data"
    data.mkdir()
    (data / source.archive).write_bytes(content)
    with pytest.raises(DataError, match=r"got '\.\./outside\.bin', which is outside of it"):
        fetch(source, data, say=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_the_command_loads_and_its_mistakes_are_sentences(site, tmp_path, monkeypatch, capsys):
    from tasks.command import cli

    monkeypatch.setitem(cifar.SOURCES, "cifar10", served(site))
    assert cli.main(["data", "cifar10", "--data", str(tmp_path)]) == 0
    assert (tmp_path / SMALL10.folder / "test_batch.bin").exists()
    site.status = 404
    assert cli.main(["data", "cifar10", "--data", str(tmp_path / "other")]) == 1
    assert capsys.readouterr().err.startswith(f"blackbox: {site.url}/{SMALL10.archive}: expected to load it")
    assert cli.main(["data", "cifar11"]) == 2


def test_the_command_knows_every_source():
    from typing import get_args, get_type_hints

    from tasks.command import commands

    assert set(get_args(get_type_hints(commands.data)["name"])) == set(cifar.SOURCES)


def test_a_pipe_in_the_archives_place_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / SMALL10.archive)
    with pytest.raises(DataError, match="expected a file, got something else"):
        fetch(SMALL10, tmp_path)
