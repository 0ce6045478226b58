"""Collect the prose that the shipped language models are pre-trained on, out of Debian 12's packages.

    python3 -m mini.corpus build/corpus        # on Debian: needs apt-get and dpkg, no root

reads   packages that apt-get downloads: mini/README.md lists them, their licences and their sizes
writes  FOLDER/packages/        what was downloaded and unpacked
        FOLDER/train/*.txt      a file a book, UTF-8: a paragraph is a line, paragraphs are a blank line apart
        FOLDER/heldout.txt      Jane Austen's Persuasion, which no training file contains

Standard library only.
"""

import glob
import gzip
import re
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path

from kit import fail
from kit.settings import Options

OPTIONS = Options(__doc__)
OPTIONS.add_argument("folder", type=Path, help="the folder to write")

PACKAGES = ("anarchism", "bible-kjv", "bible-kjv-text", "r-cran-janeaustenr", "dict-jargon",
            "dict-devil", "dict-foldoc", "debian-handbook", "debian-reference-en",
            "developers-reference")


# --- formats: each gives plain text ------------------------------------------------------------

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
    """The text of all pages that a pattern matches."""
    pages = []
    for path in sorted(glob.glob(pattern)):
        parser = Text()
        parser.feed(Path(path).read_text(encoding="utf-8", errors="replace"))
        pages.append(re.sub(r"[ \t\n]*\n[ \t\n]*\n[ \t\n]*", "\n\n", "".join(parser.parts)))
    return "\n\n".join(pages)


def markdown(pattern):
    """The text of Markdown files, gzipped or not."""
    text = "\n\n".join(gzip.open(path, "rt", encoding="utf-8", errors="replace").read()
                       if path.endswith(".gz") else Path(path).read_text(encoding="utf-8")
                       for path in sorted(glob.glob(pattern)))
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)        # links keep their words
    return re.sub(r"[*_#\\]+", "", text)


def dictionary(path):
    """The text of a dictionary in dictd's format."""
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


# --- the packages ------------------------------------------------------------------------------

def run(*command, **options):
    """What a program prints; one line and exit if it is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, **options).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        reason = " ".join((getattr(error, "stderr", "") or str(error)).split())[:200]
        fail(f"{command[0]} failed ({reason}); this needs Debian 12, its package server, apt-get and dpkg")


def unpack(root):
    """Download the packages and unpack them below a folder."""
    root.mkdir(parents=True, exist_ok=True)
    run("apt-get", "download", "-q", *PACKAGES, cwd=root)
    for package in root.glob("*.deb"):
        run("dpkg", "-x", package, root)


def books(root):
    """({name: text}, the held-out text) of the packages unpacked below a folder."""
    doc, dictd = f"{root}/usr/share/doc", f"{root}/usr/share/dictd"
    bible = run(root / "usr/bin/bible", "-p", root / "usr/lib", "-f", "genesis1:1-revelation22:21")
    bible = re.sub(r"^(?=\w+?:1 )", "\n", bible, flags=re.M)          # a paragraph is a chapter
    novels = austen(root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
    heldout = [title for title in novels if "Persuasion" in title]
    if len(novels) != 6 or len(heldout) != 1:
        fail(f"r-cran-janeaustenr holds {', '.join(novels) or 'no novel'}; six novels were expected")
    return {
        "anarchism": markdown(f"{doc}/anarchism/markdown/*.md*"),
        "bible": re.sub(r"^\w+?\d+:\d+ ", "", bible, flags=re.M),
        "jargon": dictionary(f"{dictd}/jargon.dict.dz"),
        "devil": dictionary(f"{dictd}/devil.dict.dz"),
        "foldoc": dictionary(f"{dictd}/foldoc.dict.dz"),
        "handbook": html(f"{doc}/debian-handbook/html/en-US/*.html"),
        "reference": html(f"{root}/usr/share/debian-reference/*.en.html"),
        "developers": html(f"{root}/usr/share/developers-reference/*.html"),
    } | {"austen-" + re.sub(r"\W+", "-", title.lower())[:40].strip("-"): text
         for title, text in novels.items() if title not in heldout}, novels[heldout[0]]


def main(folder):
    unpack(folder / "packages")
    texts, heldout = books(folder / "packages")
    (folder / "train").mkdir(exist_ok=True)
    for name, text in texts.items():
        path = folder / "train" / f"{name}.txt"
        path.write_text(clean(text), encoding="utf-8")
        print(f"{path.stat().st_size:>12,} {path}")
    (folder / "heldout.txt").write_text(clean(heldout), encoding="utf-8")


if __name__ == "__main__":
    main(OPTIONS.parse_args().folder)
