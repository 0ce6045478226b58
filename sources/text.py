"""Text for the language loss.

reads   a text file (UTF-8), a Parquet file with a column `text` (as the hub stores WikiText), a folder of
        either, a zip with a member `...train.raw` (WikiText's own), or a URL of one of these files.
        Without one: WikiText-103, downloaded once; in the mini profile the documentation in Python's standard
        library, which everybody has.
writes  data/PROFILE/text-TOKENIZER.npz, tokens (T,) and their provenance, named by the tokenizer's digest
"""

import ast
import collections
import hashlib
import sys
import sysconfig
import zipfile
import zlib
from pathlib import Path

import numpy as np
from tqdm import tqdm

from kit import fail, limits
from kit.artifacts import first_words, load_provenance, save_arrays, text_path
from kit.language_models import is_panic, load_tokenizer, tokenizer_digest
from kit.seals import remove_leftovers
from kit.settings import configuration
from sources.download import DOWNLOADS, download, file_name, is_url, locked, url_folder
from tasks import PROFILES, TASKS

WIKITEXT = ("https://wikitext.smerity.com/wikitext-103-raw-v1.zip",
            "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-103-raw-v1.zip")
TAKES = ("TEXT= takes a text file in UTF-8, a Parquet file with a column text, a folder of either, "
         "WikiText's zip or what is in it, or a URL of a file")


def prepare(args):
    """Write the tokens of args.text (or the profile's own) by the tokenizer of args.lm (or the profile's).
    Tokens that are there are kept, unless another text is given with args.replace."""
    profile = args.name.split("/")[0]
    if args.name not in [f"{known}/text" for known in PROFILES]:
        fail(f"no profile {profile!r}, or more than that, in {args.name!r}; there are "
             f"{' and '.join(f'{known}/text' for known in PROFILES)}")
    if args.data:
        fail(f"--data is for a cell, and {args.name} is text")
    lm = args.lm.rstrip("/") or configuration(f"{profile}/{next(iter(TASKS))}-1/lamo/seed0")["lm"]
    some = any(text_path(profile, "").parent.glob("text-*.npz"))
    # before the tokenizer is loaded, which takes seconds
    found = read(args.text, profile, args.timeout) if args.text or not some else None
    path = text_path(profile, tokenizer_digest(lm))
    with locked(path):
        remove_leftovers(path.parent, path.stem)
        if path.exists():
            old = load_provenance(path)
            if not args.text or digest_of(found[1]) == old["text_sha256"]:
                print(f"{path} is up to date, from {old['text']}")
                return
            if not (args.replace or args.fresh):
                fail(f"{path} holds {old['text']}, which is another text than {args.text}; move it away, or "
                     "replace it with --replace (REPLACE=1)")
        name, words = found or read("", profile, args.timeout)
        tokens = encode(words, load_tokenizer(lm))
        save_arrays(path, {"text": name, "text_sha256": digest_of(words), "bytes": len(words.encode()),
                           "lm": lm, "tokens": len(tokens)}, {"tokens": tokens})
    print(f"{path}: {len(tokens):,} tokens of {name}")


def digest_of(words):
    return hashlib.sha256(words.encode()).hexdigest()


def read(where, profile, timeout):
    """(name, text) of TEXT=, or, without one, of the profile's own text."""
    if not where and profile == "mini":
        return f"python-{sys.version_info.major}.{sys.version_info.minor}-docs", standard_library()
    if not where or is_url(where):
        urls = [where] if where else WIKITEXT
        folder = url_folder(where) if where else DOWNLOADS
        path = download(urls, folder / file_name(urls[0]), "", timeout,
                        f"pass TEXT=/path/to/wiki.train.raw (--text), or another text; {TAKES}")
    else:
        path = Path(where)
    files = files_of(path)
    if len(files) > 1 and (size := sum(file.stat().st_size for file in files)) > limits.TEXT:
        fail(f"{path} holds {size:,} bytes of text, and the limit is {limits.TEXT:,}; {TAKES}")
    text = ("" if files[0].suffix == ".parquet" else "\n\n").join(map(read_file, files))
    if not text or text.isspace():
        fail(f"{path} holds no text; {TAKES}")
    return path.name, text


def files_of(path):
    """The file itself, or the texts of a folder; of a dataset's Parquet files those of its training split."""
    if not path.is_dir():
        return [path]
    # .raw: WikiText's own folder, whose other files are for validation and test
    files = sorted(path.glob("*.txt")) or sorted(path.glob("*.parquet")) or sorted(path.glob("*train.raw"))
    if not files:
        fail(f"{path} holds no .txt, .parquet or train.raw file; {TAKES}")
    return [file for file in files if file.name.startswith("train") and file.suffix == ".parquet"] or files


def read_file(path):
    """The text of a file; one line and exit if it has none."""
    try:
        limits.regular(path, limits.TEXT)
        if path.suffix == ".parquet":
            return read_parquet(path)
        if path.suffix == ".zip":
            limits.members(path, 2 * limits.TEXT)
            with zipfile.ZipFile(path) as archive:
                member = next((name for name in archive.namelist() if name.endswith("train.raw")), None)
                if member is None:
                    raise ValueError("it holds no train.raw")
                return archive.read(member).decode("utf-8")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError, AttributeError, EOFError, RuntimeError, zlib.error,
            zipfile.BadZipFile) as error:  # also Arrow's
        fail(f"{path} is no readable text ({type(error).__name__}: {first_words(error)}); {TAKES}")


def read_parquet(path):
    """The column `text`, a row after the other, each ending its line."""
    try:
        from pyarrow import parquet
    except ImportError:
        fail(f"{path} needs one more package: pip install pyarrow")
    file = parquet.ParquetFile(path, read_dictionary=["text"])  # each text once, however often it is there
    groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
    limits.at_most("it claims", sum(group.total_byte_size for group in groups), limits.TEXT)
    limits.at_most("it claims", file.metadata.num_rows, limits.TEXT, "rows")
    column = file.read(columns=["text"])["text"]
    limits.at_most("its texts have", sum(length_of(chunk) for chunk in column.chunks), limits.TEXT)
    rows = column.to_pylist()
    return "".join(row if row.endswith("\n") else row + "\n" for row in rows if row is not None)


def length_of(chunk):
    """Bytes of a dictionary-encoded Arrow array, written out."""
    lengths = np.array([len((text or "").encode()) for text in chunk.dictionary.to_pylist()], np.int64)
    return int(lengths[chunk.indices.drop_null().to_numpy()].sum()) if len(lengths) else 0


def standard_library():
    """English the reader already has: the documentation inside Python's standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"}
    texts = []
    for path in sorted(root.rglob("*.py")):
        if skipped & set(path.relative_to(root).parts):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        for node in ast.walk(tree) if path.name == "topics.py" else statements(tree):
            doc = None
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                doc = ast.get_docstring(node)
            elif path.name == "topics.py" and isinstance(node, ast.Constant):
                doc = node.value  # pydoc's chapters of the language reference
            if isinstance(doc, str) and len(doc) > 200:
                texts.append(doc)
    return "\n\n".join(texts)


def statements(tree):
    """A module and its statements in the order of ast.walk, without the expressions, a third of the time."""
    waiting = collections.deque([tree])
    while waiting:
        node = waiting.popleft()
        yield node
        for name in ("body", "handlers", "orelse", "finalbody", "cases"):
            waiting.extend(getattr(node, name, ()))


def encode(text, tokenizer):
    """Token ids (T,) uint32. The tokenizer is given a few thousand lines at a time, or WikiText-103 would
    need 20 GB."""
    lines = text.splitlines(keepends=True)
    ids = []
    for start in tqdm(range(0, len(lines), 5_000), desc="tokenising", disable=None):
        try:
            encoded = tokenizer("".join(lines[start:start + 5_000]), verbose=False)["input_ids"]
        except BaseException as error:
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            fail(f"the tokenizer cannot encode the text ({first_words(error)}); take another LM=")
        ids.append(np.array(encoded, np.uint32))
    return np.concatenate(ids)
