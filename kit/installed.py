"""Before pip installs: takes back what an interrupted installation has half-written.

    .venv/bin/python -m kit.installed         # what make calls

pip writes a package's files first and their list, RECORD, at the end. A package without that list, or with
files missing, is not whole, but pip would take it for installed: its record is removed, so that pip installs
it again. Standard library only.
"""

import csv
import shutil
import sysconfig
from pathlib import Path


def broken(site):
    """The .dist-info folders, in a site-packages folder, of packages that are not whole."""
    return [record for record in sorted(Path(site).glob("*.dist-info")) if not is_whole(record)]


def is_whole(record):
    try:
        with open(record / "RECORD", newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row[1]]
        # the list that a package comes with does not name this file, and nothing outside of its folder
        listed = any(Path(row[0]).name == "INSTALLER" for row in rows)
        return listed and all((record.parent / row[0]).exists() for row in rows)
    except (OSError, ValueError, IndexError, csv.Error):
        return False


if __name__ == "__main__":
    for record in broken(sysconfig.get_path("purelib")):
        print(f"{record.name} was not installed whole, and is installed again")
        shutil.rmtree(record)
