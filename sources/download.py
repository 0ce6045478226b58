"""Files that were given, and files that are fetched: each once, whole, and by one process at a time.

writes data/downloads/NAME for a source's own files, data/downloads/DIGEST/NAME for those of a user's URL
"""

import contextlib
import fcntl
import hashlib
import http.client
import os
import re
import string
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from tqdm import tqdm

from kit import fail, limits
from kit.seals import sha256

DOWNLOADS = Path("data/downloads")
# What a file of a kind begins with: a page that says "not found", or sells the domain, is none of them.
MAGIC = {".hdf5": b"\x89HDF\r\n\x1a\n", ".zip": b"PK", ".gz": b"\x1f\x8b", ".parquet": b"PAR1"}


def is_url(where):
    return where.startswith(("http://", "https://"))


def file_name(url):
    """What a user's URL is called here: the end of its path, as much as any file system takes."""
    return url.partition("?")[0].partition("#")[0].rsplit("/", 1)[1][-60:] or "file"


def given_file(where, names):
    """The file itself, or the first of these names in the folder; None if there is none."""
    places = [Path(where), *(Path(where) / name for name in names)]
    return next((path for path in places if path.is_file()), None)


def url_folder(url):
    """Where a user's URL is kept: a file from elsewhere must not pass for the original in the next run."""
    return DOWNLOADS / hashlib.sha256(url.encode()).hexdigest()[:8]


class Redirects(urllib.request.HTTPRedirectHandler):
    """As urllib follows them, but only to the web, and from an encrypted place to another one alone."""

    def redirect_request(self, request, *answer):
        old, new = (urllib.parse.urlsplit(url).scheme for url in (request.full_url, answer[-1]))
        if new != old and (old, new) != ("http", "https"):
            raise OSError(f"it redirects to {answer[-1]}; from {old}: no other scheme is followed")
        return super().redirect_request(request, *answer)


OPENER = urllib.request.build_opener(Redirects)


def on_server(url, timeout):
    """False if the server answers that it has no such file."""
    try:
        OPENER.open(urllib.request.Request(quoted(url), method="HEAD"), timeout=timeout).close()
    except urllib.error.HTTPError as error:
        return error.code != 404
    except (OSError, ValueError, http.client.HTTPException):
        pass  # the download will say it
    return True


@contextlib.contextmanager
def locked(path):
    """One process at a time makes `path`: another waits here, and then has to look whether it is there."""
    lock = path.with_name(f".{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = open(lock, "a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that makes {path}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        # whoever had it has removed it since; a lock that nobody can find locks nothing
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
                break
        file.close()
    try:
        yield
    finally:
        lock.unlink()
        file.close()


def download(urls, path, digest, timeout, remedy):
    """The first of the URLs that yields the file. A wrong SHA-256 never reaches `path`.

    digest      what the file's SHA-256 begins with, "" if that is not known
    remedy      what to do when nobody has it, for the one line that ends the program
    """
    with locked(path):
        if path.exists():
            return path
        troubles = []
        for url in urls:
            host = url.split("/")[2]
            try:
                fetch(url, path, timeout)
            # URLError, timeouts, broken connections; ValueError of an address or a header that is none
            except (OSError, ValueError, http.client.HTTPException) as error:
                is_answer = isinstance(error, urllib.error.HTTPError)
                troubles.append(f"{host} ({error if is_answer else getattr(error, 'reason', error)})")
                continue
            if not (trouble := trouble_with(path, digest)):
                return path
            path.unlink()
            troubles.append(f"{host} ({trouble})")
        fail(f"could not download {path.name}: not reached or refused: {'; '.join(troubles)}; {remedy}")


def trouble_with(path, digest):
    """Why a file that was fetched is not what it should be, before anything opens it; "" if it may be."""
    magic = MAGIC.get(path.suffix, b"")
    with open(path, "rb") as file:
        if file.read(len(magic)) != magic:
            return f"another file: it is no {path.suffix} file by its first bytes"
    if digest and not sha256(path).startswith(digest):
        return f"another file: its SHA-256 does not begin with {digest}"
    return ""


def fetch(url, path, timeout):
    """Download url to path, resuming path.part where an earlier attempt at the same file stopped."""
    part, origin = path.with_name(path.name + ".part"), path.with_name(path.name + ".from")
    have, version, whole = begun(part, origin, url)
    headers = {"Range": f"bytes={have}-", "If-Range": version} if have else {}
    try:
        response = OPENER.open(urllib.request.Request(quoted(url), headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:      # 416: the part is no prefix of the file, so start over
            raise
        part.unlink()
        return fetch(url, path, timeout)
    with response:
        if have and response.status == 206 and not continues(response.headers, have, version, whole):
            part.unlink()
            return fetch(url, path, timeout)
        have = have if response.status == 206 else 0
        total = have + int(response.headers.get("Content-Length") or 0)
        too_large(part, total)
        if not have:
            part.unlink(missing_ok=True)  # before origin names another file than it was begun from
            origin.write_text(f"{url}\n{version_of(response.headers)}\n{total}", encoding="utf-8")
        with open(part, "ab" if have else "wb") as file, \
                tqdm(initial=have, total=total or None, unit="B", unit_scale=True, disable=None,
                     desc=path.name) as bar:
            while chunk := response.read(1 << 20):
                too_large(part, file.tell() + len(chunk))
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if total > have and part.stat().st_size != total:
        raise OSError(f"the connection broke after {part.stat().st_size:,} of {total:,} bytes; "
                      "the same command resumes")
    os.replace(part, path)
    origin.unlink(missing_ok=True)


def begun(part, origin, url):
    """(bytes, version, length) of what an earlier attempt at the same URL left. (0, "", "") if it left
    nothing, or if its server names no version: then nobody knows whether the file is still the same."""
    if part.exists() and origin.exists():
        known = origin.read_text(encoding="utf-8", errors="replace").split("\n")
        if len(known) == 3 and known[0] == url and known[1]:
            return part.stat().st_size, *known[1:]
    return 0, "", ""


def version_of(headers):
    """What a server calls a file's content of today, as If-Range takes it; "" if it says nothing exact."""
    etag = headers.get("ETag") or ""
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified") or ""


def continues(headers, have, version, whole):
    """Whether the rest that a server sends begins where a part ends, and is of the same file."""
    rest = re.fullmatch(rf"bytes {have}-\d+/{re.escape(whole)}", headers.get("Content-Range") or "")
    return rest is not None and version_of(headers) in (version, "")


def quoted(url):
    """A URL with what is no ASCII in it as servers expect it."""
    return urllib.parse.quote(url, safe=string.punctuation)


def too_large(part, size):
    if size > limits.DOWNLOAD:
        part.unlink(missing_ok=True)
        part.with_suffix(".from").unlink(missing_ok=True)
        raise OSError(f"it is {size:,} bytes long, and the limit is {limits.DOWNLOAD:,}")
