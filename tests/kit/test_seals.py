"""What proves a file whole: JSON, CSV and folders; and the command that seals what was changed by hand."""

import csv
import json
import os
import subprocess
import sys
import time

import pytest
from conftest import KIT

from kit import seals

TABLE = (["step", "return", "said"], [["1", "2.5", ""], ["2", "-3", 'a,"b"'], ["3", "", "two\nlines"]])


def test_a_table_comes_back_and_any_reader_reads_it(tmp_path):
    text = seals.csv_text(["step", "return"], [[1, 2.5], [2, None]])
    assert seals.parse_csv(text) == (["step", "return"], [["1", "2.5"], ["2", ""]])
    assert seals.parse_csv(seals.csv_text(*TABLE)) == TABLE
    rows = [*csv.DictReader(seals.csv_text(*TABLE).splitlines(keepends=True))]
    assert [row["said"] for row in rows] == [row[2] for row in TABLE[1]]
    assert all(len(row["seal"]) == 16 for row in rows)
    # what a spreadsheet or R writes of the same cells
    assert seals.parse_csv(text.replace("1,2.5", '"1","2.5"').replace("\n", "\r\n")) == seals.parse_csv(text)


def test_rows_that_are_added_leave_the_seals_above_them_but_the_last():
    (header, rows), seal = TABLE, lambda line: line.rsplit(",", 1)[-1]
    shorter = [seal(line) for line in seals.csv_text(header, rows[:2]).splitlines()]
    longer = [seal(line) for line in seals.csv_text(header, rows).splitlines()]
    assert shorter[1] == longer[1] and shorter[2] != longer[2]
    with pytest.raises(ValueError, match="row 2 .* or it was not the last one"):
        seals.parse_csv("\n".join(seals.csv_text(header, rows).splitlines()[:3]) + "\n")
    assert seals.parse_csv(seals.csv_text(header, [])) == (header, [])


@pytest.mark.parametrize("text, said", [
    ("", "columns"), ("a,b\n1,2\n", "has no seal: it was edited"),
    ("a,seal\n1,2,3\n", "columns"), ('a,seal\n"1,2\n', "end of data")])
def test_what_is_no_sealed_table_says_so(text, said):
    with pytest.raises(ValueError, match=said):
        seals.parse_csv(text)


def test_an_object_comes_back_whatever_its_spaces_and_the_order_of_its_keys():
    value = {"b": [1, 2.5, None], "a": {"é": "ü"}, "seal": "another"}
    text = seals.json_text({"b": value["b"], "a": value["a"]})
    assert seals.parse_json(text) == {"b": value["b"], "a": value["a"]} and text == seals.json_text(value)
    assert seals.parse_json(json.dumps(dict(reversed(json.loads(text).items())))) == seals.parse_json(text)
    for changed, said in ((text.replace("2.5", "2.6"), "match"), (text.replace("1,", "1.0,"), "not match"),
                          ('{"a": 1}', "has no seal"), ("[1]", "no object"), ("[" * 100_000, "too deep")):
        with pytest.raises(ValueError, match=said):
            seals.parse_json(changed)


def test_a_report_that_is_damaged_says_nothing(tmp_path):
    path = tmp_path / "a.json"
    assert seals.read_report(path) == {}
    seals.write_whole(path, seals.json_text({"a": 1}))
    assert seals.read_report(path) == {"a": 1}
    path.write_text(path.read_text().replace("1", "2", 1))
    assert seals.read_report(path) == {}


def test_a_file_is_replaced_whole_or_stays(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    seals.write_whole(path, "old")

    def full(*_):
        raise OSError("no space left")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        seals.write_whole(path, "new")
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]


def test_a_folders_list_is_sha256sums_own(tmp_path):
    for name in ("a", "b c"):
        (tmp_path / name).write_text(name)
    seals.check_list(tmp_path)  # anybody's, without a list
    with pytest.raises(OSError):
        seals.check_list(tmp_path, "a")
    seals.write_list(tmp_path)
    subprocess.run(["sha256sum", "--quiet", "-c", seals.LISTED], cwd=tmp_path, check=True)
    seals.check_list(tmp_path)
    (tmp_path / "new").touch()
    seals.check_list(tmp_path, "a")
    (tmp_path / "b c").write_text("d")
    seals.check_list(tmp_path, "a")
    for only in (None, "b c"):
        with pytest.raises(ValueError, match="b c is not the file that SHA256SUMS lists; .* kit.seals"):
            seals.check_list(tmp_path, only)
    with pytest.raises(ValueError, match="does not list new"):
        seals.check_list(tmp_path, "new")
    (tmp_path / "a").unlink()
    with pytest.raises(ValueError, match="a is not there"):
        seals.check_list(tmp_path)
    for names in (["-b", "b c"], ["./b c"]):
        said = subprocess.run(["sha256sum", *names], cwd=tmp_path, check=True, capture_output=True).stdout
        (tmp_path / seals.LISTED).write_bytes(said)
        seals.check_list(tmp_path, "b c")
    (tmp_path / seals.LISTED).write_bytes(said + b"something else\n")
    with pytest.raises(ValueError, match="does not list the files of its folder"):
        seals.check_list(tmp_path)
    (tmp_path / seals.LISTED).write_text(f"{'0' * 64}  ../a\n")
    with pytest.raises(ValueError, match="does not list the files of its folder"):
        seals.check_list(tmp_path)


def test_the_command_seals_what_was_changed_by_hand(tmp_path):
    def call(*words):
        return subprocess.run([sys.executable, "-m", "kit.seals", *words], cwd=KIT, capture_output=True,
                              text=True)

    table, record, folder = tmp_path / "a.csv", tmp_path / "a.json", tmp_path / "lm"
    table.write_text("step,return\n1,2\n")
    record.write_text('{"a": 1}')
    folder.mkdir()
    (folder / "x").touch()
    done = call(*map(str, (table, record, folder)))
    assert done.returncode == 0 and done.stdout.count("sealed as it is") == 3, done.stderr
    assert seals.parse_csv(table.read_text()) == (["step", "return"], [["1", "2"]])
    assert seals.read_json(record) == {"a": 1}
    seals.check_list(folder, "x")
    table.write_text(table.read_text().replace("1,2", "1,3"))
    seals.seal(table)  # the old column goes
    assert seals.parse_csv(table.read_text())[1] == [["1", "3"]]
    (tmp_path / "b.txt").touch()
    for wrong in ("nothing.csv", "b.txt"):
        done = call(str(tmp_path / wrong))
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "cannot be sealed" in done.stderr


def test_leftovers_go_but_not_what_somebody_writes(tmp_path):
    alive, own = os.getppid(), os.getpid()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = seals.here()
    left = [f".eval.1a2b.{host}.{dead.pid}.part.csv", f".final.{host}.{own}.part.safetensors", ".tmpAb1xYz",
            f".final.elsewhere.{dead.pid}.part.npz"]
    # what another host writes, too: nobody here can ask for its processes
    kept = [f".eval.{host}.{alive}.part.csv", "eval.csv", ".claim.host.7",
            f".eval.elsewhere.{dead.pid}.part.csv", f".final-d1.elsewhere.{dead.pid}.part.npz"]
    for name in left + kept:
        (tmp_path / name).touch()
    os.utime(tmp_path / left[3], (0, 0))
    os.utime(tmp_path / kept[4], (time.time() - 600,) * 2)  # ten minutes of a slow write are no death
    (tmp_path / f".final-d1.{host}.{dead.pid}.part.npz").touch()  # another cell's
    seals.remove_leftovers(tmp_path, "final")
    assert not [name for name in (left[1], left[3]) if (tmp_path / name).exists()]
    assert (tmp_path / left[0]).exists() and (tmp_path / f".final-d1.{host}.{dead.pid}.part.npz").exists()
    seals.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
