"""The prose the shipped language model was pre-trained on, rebuilt from Debian 12's packages.

    python3 assets/corpus.py build/corpus        # on Debian: needs apt-get and dpkg, no root

writes build/corpus/train/*.txt and build/corpus/heldout.txt (Jane Austen's Persuasion, which no
training file contains). assets/README.md lists the packages, their licences and their sizes.
"""

import glob
import gzip
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path

PACKAGES = ("anarchism", "bible-kjv", "bible-kjv-text", "r-cran-janeaustenr", "dict-jargon",
            "dict-devil", "dict-foldoc", "debian-handbook", "debian-reference-en",
            "developers-reference")


class Text(HTMLParser):
    """The text of an HTML page, a blank line between blocks, without listings, tables and navigation."""

    skip = {"script", "style", "pre", "table", "head", "nav"}
    blocks = {"p", "div", "li", "h1", "h2", "h3", "h4", "h5", "br", "dd", "dt", "blockquote"}

    def __init__(self):
        super().__init__()
        self.parts, self.depth = [], 0

    def handle_starttag(self, tag, attrs):
        self.depth += tag in self.skip
        if tag in self.blocks:
            self.parts.append("\n\n")

    def handle_endtag(self, tag):
        self.depth -= tag in self.skip

    def handle_data(self, data):
        if not self.depth:
            self.parts.append(data)


def html(pattern):
    pages = []
    for path in sorted(glob.glob(pattern)):
        parser = Text()
        parser.feed(Path(path).read_text(encoding="utf-8", errors="replace"))
        pages.append(re.sub(r"[ \t\n]*\n[ \t\n]*\n[ \t\n]*", "\n\n", "".join(parser.parts)))
    return "\n\n".join(pages)


def markdown(pattern):
    text = "\n\n".join(gzip.open(path, "rt", encoding="utf-8", errors="replace").read()
                       if path.endswith(".gz") else Path(path).read_text(encoding="utf-8")
                       for path in sorted(glob.glob(pattern)))
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)        # links keep their words
    return re.sub(r"[*_#\\]+", "", text)


def dictionary(path):
    text = gzip.open(path, "rt", encoding="utf-8", errors="replace").read()
    text = re.sub(r"[{}]", "", text)                              # {cross references}
    return re.sub(r"^ +", "", text, flags=re.M)


def austen(path):
    """{title: text} from the R package's database: zlib streams of R's serialised strings."""
    data, novels = Path(path).read_bytes(), {}
    start = 0
    while (start := data.find(b"x\x9c", start)) >= 0:
        try:
            blob = zlib.decompressobj().decompress(data[start:])
        except zlib.error:
            start += 1
            continue
        lines, at = [], 0
        # a CHARSXP is 4 bytes of flags ending in type 9, 4 bytes of length, then its bytes
        for match in re.finditer(rb"\x00[\x00-\x0f][\x00-\xff]\x09([\x00-\xff]{4})", blob):
            if match.start() >= at:
                length = int.from_bytes(match.group(1), "big", signed=True)
                at = match.end() + max(length, 0)
                lines.append(blob[match.end():at].decode("utf-8", "replace"))
        novels[lines[0].strip().title() if lines else ""] = "\n".join(lines)
        start += 2
    return {title: text for title, text in novels.items() if len(text) > 100_000}


def clean(text):
    """Undo hard line breaks: a paragraph is a line, paragraphs are a blank line apart."""
    text = text.replace("\r", "").replace("\u00a0", " ")
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n[ \t]*\n", text))
    return "\n\n".join(part for part in paragraphs if part) + "\n"


def main(folder):
    root = folder / "packages"
    root.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", "-q", *PACKAGES], cwd=root, check=True)
    for package in root.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, root], check=True)
    doc, dictd = f"{root}/usr/share/doc", f"{root}/usr/share/dictd"
    bible = subprocess.run([root / "usr/bin/bible", "-p", root / "usr/lib", "-f",
                            "genesis1:1-revelation22:21"],
                           capture_output=True, text=True, check=True).stdout
    novels = austen(root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
    heldout = [title for title in novels if "Persuasion" in title]
    assert len(novels) == 6 and len(heldout) == 1, sorted(novels)
    texts = {
        "anarchism": markdown(f"{doc}/anarchism/markdown/*.md*"),
        "bible": re.sub(r"^\w+?\d+:\d+ ", "", re.sub(r"^(?=\w+?:1 )", "\n", bible, flags=re.M),
                        flags=re.M),                              # a paragraph is a chapter
        "jargon": dictionary(f"{dictd}/jargon.dict.dz"),
        "devil": dictionary(f"{dictd}/devil.dict.dz"),
        "foldoc": dictionary(f"{dictd}/foldoc.dict.dz"),
        "handbook": html(f"{doc}/debian-handbook/html/en-US/*.html"),
        "reference": html(f"{root}/usr/share/debian-reference/*.en.html"),
        "developers": html(f"{root}/usr/share/developers-reference/*.html"),
    } | {"austen-" + re.sub(r"\W+", "-", title.lower())[:40].strip("-"): text
         for title, text in novels.items() if title not in heldout}
    (folder / "train").mkdir(exist_ok=True)
    for name, text in texts.items():
        path = folder / "train" / f"{name}.txt"
        path.write_text(clean(text), encoding="utf-8")
        print(f"{path.stat().st_size:>12,} {path}")
    (folder / "heldout.txt").write_text(clean(novels[heldout[0]]), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
