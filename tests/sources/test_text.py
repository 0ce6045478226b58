"""sources/text.py: what counts as text, and what ends in one line that names the file."""

import ast
import importlib.util
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from kit import limits
from sources import text

LATIN = "Größe und Maß\n".encode("latin-1")


def write_parquet(path, rows, column="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table({column: rows}), path)
    return path


def test_the_standard_librarys_text_is_english_enough():
    name, words = text.read("", "mini", 1)
    assert name == f"python-{sys.version_info.major}.{sys.version_info.minor}-docs"
    assert len(words) > 500_000 and words.count(" the ") > 5_000


def test_a_file_a_folder_and_wikitexts_zip(tmp_path):
    (tmp_path / "a.raw").write_text("one\ntwo\n")
    assert text.read(str(tmp_path / "a.raw"), "paper", 1) == ("a.raw", "one\ntwo\n")
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("b.txt", "a.txt"):
        (folder / name).write_text(name)
    assert text.read(str(folder), "mini", 1) == ("folder", "a.txt\n\nb.txt")
    wiki = tmp_path / "wikitext-103-raw"  # as the zip unpacks
    wiki.mkdir()
    for part in ("train", "valid", "test"):
        (wiki / f"wiki.{part}.raw").write_text(part)
    assert text.read(str(wiki), "paper", 1) == ("wikitext-103-raw", "train")
    with zipfile.ZipFile(tmp_path / "wiki.zip", "w") as archive:
        archive.writestr("wikitext-103-raw/wiki.test.raw", "test")
        archive.writestr("wikitext-103-raw/wiki.train.raw", "train – raw")
    assert text.read(str(tmp_path / "wiki.zip"), "paper", 1) == ("wiki.zip", "train – raw")


def test_parquet_is_read_as_the_hub_stores_wikitext(tmp_path):
    rows = ["", " = Title = \n", "", " A line . \n", None, "no end"]
    path = write_parquet(tmp_path / "one.parquet", rows)
    words = "\n = Title = \n\n A line . \nno end\n"
    assert text.read(str(path), "paper", 1) == ("one.parquet", words)
    # a folder's training split, and not the test split beside it
    folder = tmp_path / "wikitext-103-raw-v1"
    write_parquet(folder / "train-00000-of-00002.parquet", ["first\n"])
    write_parquet(folder / "train-00001-of-00002.parquet", ["second\n"])
    write_parquet(folder / "test-00000-of-00001.parquet", ["held out\n"])
    assert text.read(str(folder), "paper", 1) == (folder.name, "first\nsecond\n")
    other = tmp_path / "other"
    write_parquet(other / "a.parquet", ["a"])
    write_parquet(other / "b.parquet", ["b"])
    assert text.read(str(other), "paper", 1)[1] == "a\nb\n"


def test_parquet_without_pyarrow_is_one_line(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "one.parquet", ["words"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SystemExit, match="pip install pyarrow") as stop:
        text.read(str(path), "paper", 1)
    assert "one.parquet" in str(stop.value)


def bad_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("wiki.train.raw", LATIN)


def damaged_zip(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("wiki.train.raw", "words " * 1000)
        start = archive.infolist()[0].header_offset + 30 + len("wiki.train.raw")
    content = bytearray(path.read_bytes())
    content[start:start + 4] = b"\xff" * 4
    path.write_bytes(content)


def zip_that_claims(path, **claims):
    """As an archive says of its member: encrypted (flag 1), or packed in a way that nobody reads (9)."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("wiki.train.raw", "words")
        for name, value in claims.items():
            setattr(archive.infolist()[0], name, value)


def other_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", b"")


@pytest.mark.parametrize("name, write, said", [
    ("latin.txt", lambda path: path.write_bytes(LATIN), "UnicodeDecodeError"),
    ("bytes.txt", lambda path: path.write_bytes(b"\xff\xfe\x00"), "no readable text"),
    ("latin.zip", bad_zip, "UnicodeDecodeError"), ("other.zip", other_zip, "no train.raw"),
    ("broken.zip", lambda path: path.write_bytes(b"PK\x03\x04"), "BadZipFile"),
    ("damaged.zip", damaged_zip, "no readable text"),
    ("secret.zip", lambda path: zip_that_claims(path, flag_bits=1), "no readable text"),
    ("packed.zip", lambda path: zip_that_claims(path, compress_type=9), "no readable text"),
    ("empty.txt", lambda path: path.write_text(" \n"), "holds no text"),
    ("folder", lambda path: path.mkdir(), "holds no .txt, .parquet or train.raw file"),
    ("nowhere.txt", lambda path: None, "FileNotFoundError"),
    ("broken.parquet", lambda path: path.write_bytes(b"PAR1 and no more"), "no readable text"),
    ("columns.parquet", lambda path: write_parquet(path, ["a"], "words"), "KeyError"),
    ("numbers.parquet", lambda path: write_parquet(path, [1, 2]), "no readable text")])
def test_what_is_no_text_ends_in_one_line(tmp_path, name, write, said):
    write(tmp_path / name)
    with pytest.raises(SystemExit, match=said) as stop:
        text.read(str(tmp_path / name), "paper", 1)
    line = str(stop.value)
    assert str(tmp_path / name) in line and "TEXT= takes" in line and "\n" not in line


def test_the_limit_is_of_all_files_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "TEXT", 100)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("w" * 60)
    with pytest.raises(SystemExit, match="holds 120 bytes of text, and the limit is 100"):
        text.read(str(tmp_path), "paper", 1)


def test_the_file_of_a_folder_that_is_no_text_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_bytes(LATIN)
    with pytest.raises(SystemExit, match=r"b\.txt is no readable text \(UnicodeDecodeError") as stop:
        text.read(str(tmp_path), "paper", 1)
    assert "\n" not in str(stop.value)


def test_no_network_is_one_line_that_says_what_to_pass(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(text, "WIKITEXT", ("http://127.0.0.1:9/wikitext.zip",))
    with pytest.raises(SystemExit, match="TEXT=/path/to/wiki.train.raw") as stop:
        text.read("", "paper", 1)
    assert "127.0.0.1" in str(stop.value) and "\n" not in str(stop.value)


def test_a_users_url_is_kept_apart_from_the_original(tmp_path, monkeypatch):
    """Two texts of one name from two places are two texts."""
    monkeypatch.chdir(tmp_path)
    asked = []

    def download(urls, path, *_):
        asked.append(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(urls[0])
        return path

    monkeypatch.setattr(text, "download", download)
    for url in ("http://a/text.raw", "http://b/text.raw"):
        assert text.read(url, "paper", 1) == ("text.raw", url)
    assert asked[0] != asked[1]


def test_a_text_is_encoded_in_parts_of_whole_lines():
    def tokenizer(part, verbose):
        assert part.endswith("\n") and part.count("\n") <= 5_000
        return {"input_ids": [len(line) for line in part.splitlines()]}

    tokens = text.encode("".join("x" * (i % 7) + "\n" for i in range(12_345)), tokenizer)
    assert tokens.dtype == np.uint32 and np.array_equal(tokens, np.arange(12_345) % 7)


def test_statements_are_those_that_ast_walk_finds_in_its_order():
    found = 0
    for name in ("ast", "typing", "dataclasses", "asyncio.tasks"):  # nested functions, try, with, if
        tree = ast.parse(Path(importlib.util.find_spec(name).origin).read_text(encoding="utf-8"))
        kinds = ast.Module, ast.ClassDef, ast.FunctionDef
        walked = [node for node in ast.walk(tree) if isinstance(node, kinds)]
        assert [node for node in text.statements(tree) if isinstance(node, kinds)] == walked
        found += len(walked)
    assert found > 500
