"""HDF5 files from elsewhere: what is read lies in the file itself, and is as large as memory allows.

    hdf5.columns(file, ["observations", "actions"])      # {name: h5py.Dataset}; nothing is read yet

HDF5 can name other files in three ways (external links, external raw storage, virtual datasets), and can
claim rows that are not there (a fill value stands for them). Each raises ValueError.
"""

import math

import h5py

LARGEST = 2**30     # bytes of all columns of a file; D4RL's largest have half of that
CHUNK = 2**28       # bytes that are unpacked at once
CHUNKS = 500_000    # of a column
GROUPS = 100_000    # names in the file's root: Minari has one an episode


def check_root(file):
    """That every name of an open file leads to something in it."""
    if len(file) > GROUPS:
        raise ValueError(f"it holds {len(file):,} names, and the limit is {GROUPS:,}")
    for name in file:
        check_link(file, name)


def check_link(group, name):
    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        kind = "another file" if isinstance(link, h5py.ExternalLink) else "another name"
        place = f"{getattr(link, 'filename', '')} {link.path}".strip()
        raise ValueError(f"{name} is a link to {kind}, {place}; only what a file itself holds is read")


def group(file, path):
    """A group, none of whose parents is a link."""
    here = file
    for name in path.split("/"):
        check_link(here, name)
        here = here[name]
    return here


def column(file, path):
    """A dataset of numbers that lies in the file itself, and is no larger than LARGEST."""
    found = group(file, path)
    if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "fiub" or found.shape is None:
        raise ValueError(f"{path} is no array of numbers")
    if found.external:
        raise ValueError(f"{path} is stored in another file, {found.external[0][0]}; only what a file itself "
                         "holds is read")
    if found.is_virtual:
        raise ValueError(f"{path} is a virtual dataset, of {found.virtual_sources()[0].file_name}; only what "
                         "a file itself holds is read")
    size = math.prod(found.shape) * found.dtype.itemsize
    if size > LARGEST:
        raise ValueError(f"{path} claims shape {found.shape}, {size:,} bytes, and the limit is {LARGEST:,}")
    if size and not found.id.get_storage_size():
        raise ValueError(f"{path} claims shape {found.shape}, and nothing of it is stored")
    if found.chunks:
        chunk = math.prod(found.chunks) * found.dtype.itemsize
        count = math.prod(math.ceil(n / c) for n, c in zip(found.shape, found.chunks, strict=True))
        if chunk > CHUNK or count > CHUNKS:
            raise ValueError(f"{path} lies in {count:,} pieces of {chunk:,} bytes, and the limits are "
                             f"{CHUNKS:,} and {CHUNK:,}")
        if (stored := found.id.get_num_chunks()) != count:
            raise ValueError(f"{path} lies in {count:,} pieces, and {stored:,} of them are stored")
    return found


def columns(file, paths):
    """{path: dataset}, none of them read, no larger together than LARGEST."""
    found = {path: column(file, path) for path in paths}
    size = sum(math.prod(each.shape) * each.dtype.itemsize for each in found.values())
    if size > LARGEST:
        raise ValueError(f"its columns claim {size:,} bytes together, and the limit is {LARGEST:,}")
    return found
