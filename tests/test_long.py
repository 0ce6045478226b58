"""tests/long.py at a small size: its attacks find nothing, and would say so. Full size: `make test-long`."""

import os
import signal
import time

import long


def test_a_download_that_goes_wrong_is_refused_and_the_next_one_is_whole():
    found = [*long.downloads(20)]
    assert len(found) == 20 and {outcome for _, outcome, _ in found} == {"refused"}, found


def test_a_server_that_sends_other_bytes_would_be_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(long, "download", lambda urls, path, *_: path.write_bytes(b"other"))
    assert long.fetched(tmp_path / "x", ["http://x"], "", "")[0] == "silent"


def test_a_test_that_fails_is_something_that_came_through():
    assert [*long.of_tests("no_such_test.py")] == [
        ("tests/no_such_test.py", "traceback", "a test failed, see above")]


def test_a_stage_that_is_killed_ends_in_the_same_bytes():
    found = long.kills(1)
    assert len(found) == len(long.STAGES)
    assert [attack for attack in found if attack[1] != "harmless"] == []


def test_a_make_that_is_killed_at_the_very_end_of_its_last_stage_leaves_no_lock(tmp_path):
    stage = long.Stage("make", tmp_path)
    stage.reset()
    process, last = stage.start(), tmp_path / "runs" / long.RUN.replace("/dt/", "/bc/")
    while not (last / "eval.csv").exists():
        assert process.poll() is None
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert stage.again() == ("harmless", "")


def test_two_makes_of_one_cell_end_in_the_same_bytes():
    found = [*long.pairs(1)]
    assert len(found) == 1 and {outcome for _, outcome, _ in found} == {"harmless"}, found


def test_the_table_counts_and_stands_between_its_markers(tmp_path, monkeypatch):
    document = tmp_path / "page.md"
    document.write_text(f"a\n{long.MARKERS[0]}\n{long.MARKERS[1]}\nb\n")
    monkeypatch.setattr(long, "DOCUMENT", document)
    count = {"refused": 3, "harmless": 1, "silent": 0, "traceback": 0}
    for found in ({"x": count}, {"y": count | {"silent": 1}}, {"x": count | {"refused": 1004}}):
        long.write(long.rows(found))
    assert document.read_text().splitlines() == [
        "a", long.MARKERS[0], "", *long.HEAD, "| x | 1,005 | 1,004 | 1 | 0 | 0 |",
        "| y | 5 | 3 | 1 | 1 | 0 |", "", long.MARKERS[1], "b"]


def test_the_document_has_the_markers():
    text = long.DOCUMENT.read_text()
    assert all(text.count(marker) == 1 for marker in long.MARKERS)
