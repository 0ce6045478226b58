"""mini/corpus.py: how each format becomes plain prose."""

import gzip
import zlib

import pytest

from mini import corpus


def test_a_paragraph_is_a_line():
    assert corpus.clean("one\r\n  two\u00a0three\n \t\n\n\nfour") == "one two three\n\nfour\n"


def test_html_keeps_the_prose_alone(tmp_path):
    (tmp_path / "b.html").write_text("<p>Last.</p>")
    (tmp_path / "a.html").write_text(
        "<head><title>x</title></head><h1>Head &amp; tail</h1><p>One <b>two</b>.</p>"
        "<pre>code</pre><table><tr><td>cell</td></tr></table><nav>next</nav>")
    assert corpus.clean(corpus.html(f"{tmp_path}/*.html")) == "Head & tail\n\nOne two.\n\nLast.\n"


def test_markdown_links_keep_their_words(tmp_path):
    (tmp_path / "a.md").write_text("# Head\n\nSee [the *book*](http://x.y) \\[1\\].")
    with gzip.open(tmp_path / "b.md.gz", "wt") as file:
        file.write("![a cat](cat.png)")
    assert corpus.clean(corpus.markdown(f"{tmp_path}/*.md*")) == "Head\n\nSee the book [1].\n\na cat\n"


def test_dictionaries_lose_their_braces(tmp_path):
    with gzip.open(tmp_path / "x.dict.dz", "wt") as file:
        file.write("bug\n   See {feature}.\n")
    assert corpus.dictionary(tmp_path / "x.dict.dz") == "bug\nSee feature.\n"


def test_novels_are_found_in_rs_database(tmp_path):
    def stream(lines):
        return zlib.compress(b"".join(b"\x00\x04\x00\x09" + len(line).to_bytes(4, "big") + line.encode()
                                      for line in lines))
    novel = ["EMMA", *["It was a fine day."] * 10_000]
    (tmp_path / "x.rdb").write_bytes(b"\x00x\x9cno stream" + stream(novel) + stream(["SHORT", "text"]))
    novels = corpus.austen(tmp_path / "x.rdb")
    assert list(novels) == ["Emma"] and novels["Emma"].splitlines() == novel


def test_without_debian_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as error:
        corpus.main(tmp_path / "corpus")
    assert "apt-get" in str(error.value) and "\n" not in str(error.value)
