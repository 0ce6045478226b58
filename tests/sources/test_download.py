"""sources/download.py: resumed, checked, from the second mirror, and by one process at a time."""

import hashlib
import http.server
import threading
import time
import urllib.request
from email.message import Message
from functools import partial

import numpy as np
import pytest

from kit import limits
from sources import download


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `content`, its `version` with it, with Range support, and breaks the connection after `patience`
    bytes. An obstinate one knows Range, and not If-Range."""

    content, patience, version, obstinate, requests = b"", None, '"1"', False, []

    def do_GET(self):
        start = 0
        if "Range" in self.headers:
            start = int(self.headers["Range"].split("=")[1].rstrip("-"))
        self.requests.append(start)
        if start >= len(self.content):
            self.send_error(416)
            return
        body = self.content[start:]
        if self.headers.get("If-Range") not in (None, self.version) and not self.obstinate:
            start, body = 0, self.content
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        if self.version:
            self.send_header("ETag", self.version)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:self.patience] if self.patience else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    handler = type("OneServer", (Server,), {"requests": []})
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    handler.url = f"http://127.0.0.1:{httpd.server_port}/file.bin"
    yield handler
    httpd.shutdown()


def test_a_broken_download_is_resumed(tmp_path, server):
    server.content = np.random.default_rng(0).bytes(300_000)
    server.patience = 100_000
    digest = hashlib.sha256(server.content).hexdigest()
    path = tmp_path / "file.bin"
    get = partial(download.download, [server.url], path, digest[:16], 5, "remedy")
    for _ in range(2):
        with pytest.raises(SystemExit, match="resumes"):
            get()
        assert not path.exists()
    assert get() == path and path.read_bytes() == server.content
    assert server.requests == [0, 100_000, 200_000]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("version, change", [
    ('"1"', {"version": '"2"'}), ('"1"', {"version": '"2"', "obstinate": True}),
    ('"1"', {"content": b"b" * 300_001, "obstinate": True}), (None, {}), ('W/"1"', {})])
def test_a_part_is_never_joined_with_another_file(tmp_path, server, version, change):
    server.content, server.patience, server.version = b"a" * 300_000, 100_000, version
    with pytest.raises(SystemExit, match="resumes"):
        download.download([server.url], tmp_path / "file.bin", "", 5, "remedy")
    server.content, server.patience = b"b" * 300_000, None
    for name, value in change.items():
        setattr(server, name, value)
    path = download.download([server.url], tmp_path / "file.bin", "", 5, "remedy")
    assert path.read_bytes() == server.content and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", [b"", b"x", b"\xff\n", b"a\nb\nc\nd"])
def test_what_a_part_was_begun_from_may_be_damaged(tmp_path, server, damage):
    server.content = b"b" * 3000
    (tmp_path / "file.bin.part").write_bytes(b"a" * 1000)
    (tmp_path / "file.bin.from").write_bytes(damage)
    path = download.download([server.url], tmp_path / "file.bin", "", 5, "remedy")
    assert path.read_bytes() == server.content and list(tmp_path.iterdir()) == [path]


def test_a_part_of_one_mirror_is_not_continued_from_another(tmp_path, server):
    server.content, server.patience = b"a" * 300_000, 100_000
    other = server.url.replace("file.bin", "mirror/file.bin")
    with pytest.raises(SystemExit, match="resumes"):
        download.download([server.url], tmp_path / "file.bin", "", 5, "remedy")
    server.patience = None
    download.download([other], tmp_path / "file.bin", "", 5, "remedy")
    assert server.requests == [0, 0]


@pytest.mark.parametrize("url", ["http://[::1/x.hdf5", "http://a..b/x.hdf5", "http://localhost:9/donn\u00e9es.hdf5",
                                 "http://localhost:9/" + "n" * 300, "http://localhost:9/x?" + "n" * 300,
                                 "http://localhost:nine/x", "http://localhost:9/\udcff"])
def test_an_address_that_is_none_is_one_line(tmp_path, url):
    with pytest.raises(SystemExit, match="could not download"):
        download.download([url], tmp_path / download.file_name(url), "", 5, "remedy")
    assert download.on_server(url, 5) and not list(tmp_path.iterdir())


def test_names_of_urls():
    assert download.file_name("https://a/b/train.txt?X-Amz-Signature=1/2#3") == "train.txt"
    assert download.file_name("https://a/b/") == "file"


def test_what_is_no_ascii_in_a_url_is_asked_for_as_servers_expect_it(tmp_path, server):
    server.content = b"x" * 1000
    url = server.url.replace("file.bin", "donn\u00e9es.bin")
    assert download.download([url], tmp_path / "f.bin", "", 5, "remedy").read_bytes() == server.content


def test_a_wrong_checksum_never_reaches_the_final_path(tmp_path, server):
    server.content = b"<html>not the file</html>"
    with pytest.raises(SystemExit, match="SHA-256 does not begin with 5bdf"):
        download.download([server.url], tmp_path / "file.bin", "5bdf", 5, "remedy")
    assert list(tmp_path.iterdir()) == []


def test_the_second_mirror_is_tried(tmp_path, server):
    server.content = b"x" * 1000
    urls = ["http://127.0.0.1:9/file.bin", server.url]
    assert download.download(urls, tmp_path / "file.bin", "", 5, "remedy").read_bytes() == server.content


def test_a_stale_part_that_is_too_long_is_dropped(tmp_path, server):
    server.content = b"y" * 1000
    (tmp_path / "file.bin.part").write_bytes(b"z" * 2000)
    path = download.download([server.url], tmp_path / "file.bin", "", 5, "remedy")
    assert path.read_bytes() == server.content


def test_a_file_that_is_there_is_not_asked_for(tmp_path, server):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    assert download.download([server.url], path, "", 5, "remedy").read_bytes() == b"old"
    assert server.requests == []


def test_two_downloads_of_one_file_fetch_it_once(tmp_path, server):
    server.content = np.random.default_rng(0).bytes(3_000_000)
    path, found = tmp_path / "file.bin", []
    threads = [threading.Thread(target=lambda: found.append(
        download.download([server.url], path, "", 5, "remedy"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [path] * 4 and path.read_bytes() == server.content and server.requests == [0]


def test_one_at_a_time_holds_the_lock_and_nothing_is_left(tmp_path, capsys):
    inside, most = [], []

    def work():
        with download.locked(tmp_path / "a.npz"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8 and list(tmp_path.iterdir()) == []
    assert "waiting for another process that makes" in capsys.readouterr().out


def test_a_lock_is_released_when_the_program_ends(tmp_path):
    for _ in range(2):
        with pytest.raises(SystemExit), download.locked(tmp_path / "a.npz"):
            raise SystemExit(1)
    assert list(tmp_path.iterdir()) == []


def test_files_are_found_by_name_in_their_order(tmp_path):
    (tmp_path / "mujoco").mkdir()
    (tmp_path / "mujoco/a.hdf5").write_bytes(b"")
    names = ("a.hdf5", "mujoco/a.hdf5")
    assert download.given_file(str(tmp_path), names) == tmp_path / "mujoco/a.hdf5"
    (tmp_path / "a.hdf5").write_bytes(b"")
    assert download.given_file(str(tmp_path), names) == tmp_path / "a.hdf5"
    assert download.given_file(str(tmp_path / "a.hdf5"), names) == tmp_path / "a.hdf5"
    assert download.given_file(str(tmp_path / "nowhere"), names) is None


# --- what a server may answer --------------------------------------------------------------------

@pytest.mark.parametrize("old, new, follows", [
    ("http://a/x", "http://b/y", True), ("http://a/x", "https://b/y", True),
    ("https://a/x", "https://b/y", True), ("https://a/x", "http://b/y", False),
    ("http://a/x", "ftp://b/y", False), ("https://a/x", "file:///y", False),
    ("http://a/x", "data:text/plain,y", False)])
def test_a_redirect_stays_on_the_web_and_encrypted(old, new, follows):
    def redirect():
        request = urllib.request.Request(old)
        return download.Redirects().redirect_request(request, None, 302, "Found", Message(), new)

    if follows:
        assert redirect().full_url == new
    else:
        with pytest.raises(OSError, match="no other scheme is followed"):
            redirect()


def test_a_redirect_to_a_file_is_one_line_and_leaves_nothing(tmp_path, server):
    (tmp_path / "secret").write_text("secret")

    def do_GET(self):
        self.send_response(302)
        self.send_header("Location", (tmp_path / "secret").as_uri())
        self.end_headers()

    server.do_GET = do_GET
    with pytest.raises(SystemExit, match="could not download file.bin") as stop:
        download.download([server.url], tmp_path / "file.bin", "", 5, "remedy")
    assert "\n" not in str(stop.value) and [path.name for path in tmp_path.iterdir()] == ["secret"]


@pytest.mark.parametrize("suffix", download.MAGIC)
def test_a_page_instead_of_the_file_never_reaches_a_parser(tmp_path, server, suffix):
    server.content = b"<html>404, and this domain is for sale</html>"
    path = tmp_path / f"file{suffix}"
    with pytest.raises(SystemExit, match=f"it is no {suffix} file by its first bytes"):
        download.download([server.url], path, "", 5, "remedy")
    assert list(tmp_path.iterdir()) == []
    server.content = download.MAGIC[suffix] + bytes(9)
    assert download.download([server.url], path, "", 5, "remedy").read_bytes() == server.content


def test_a_download_has_an_end(tmp_path, server, monkeypatch):
    monkeypatch.setattr(limits, "DOWNLOAD", 5 << 20)
    server.content = bytes(6 << 20)
    get = partial(download.download, [server.url], tmp_path / "file.bin", "", 5, "remedy")
    with pytest.raises(SystemExit, match="it is 6,291,456 bytes long, and the limit is 5,242,880"):
        get()

    def do_GET(self):  # says no length, and never stops
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(bytes(1 << 20))

    server.do_GET = do_GET
    with pytest.raises(SystemExit, match="6,291,456 bytes long"):
        get()
    assert list(tmp_path.iterdir()) == []
