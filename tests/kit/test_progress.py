"""A line now and then where no terminal watches; a file for those who ask."""

import json

import pytest

from kit import progress


@pytest.fixture
def clock(monkeypatch):
    """The clock of kit.progress, which the test moves."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_minute_without_a_terminal(clock, capsys):
    bar = progress.Progress("mini/a-1/dt/seed0: training", 100, 1000, "step")
    for step in bar:
        clock[0] += 0.5
        if step == 110:
            bar.note(action_loss="0.0123")
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and len(lines) == 900 * 0.5 // 60
    assert lines[0] == ("mini/a-1/dt/seed0: training, step 220 of 1,000, action_loss 0.0123, 2 steps/s, "
                        "6.5 min left")


def test_a_total_that_is_known_later(clock, capsys):
    with progress.Progress("a: playing", 0, None, "environment step") as bar:
        clock[0] += 61
        bar.advance(122)
        bar.expect(366)
        clock[0] += 61
        bar.advance(122)
        clock[0] += 61
        bar.advance(123)  # more than was expected
    assert capsys.readouterr().out.splitlines() == [
        "a: playing, environment step 122, 2 environment steps/s",
        "a: playing, environment step 244 of 366, 2 environment steps/s, 61 s left",
        "a: playing, environment step 367, 2.01 environment steps/s"]


def test_the_file_says_how_far_it_is_also_at_an_untimely_end(clock, tmp_path, monkeypatch):
    path = tmp_path / "progress.json"
    monkeypatch.setenv("LAMO_PROGRESS", str(path))
    seen = []
    with pytest.raises(ValueError):
        with progress.Progress("a: training", 10, 30, "step") as bar:
            for _ in range(7):
                clock[0] += 2
                bar.advance()
                seen.append(json.loads(path.read_text())["done"])
            raise ValueError
    assert seen == [11, 11, 11, 14, 14, 14, 17]  # not at every step: every five seconds
    said = json.loads(path.read_text())
    assert (said["first"], said["done"], said["total"], said["seconds"]) == (10, 17, 30, 14.0)
    assert said["left"] == pytest.approx(26.0) and list(tmp_path.iterdir()) == [path]


def test_nothing_is_written_where_nobody_asked_or_nothing_can_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert list(progress.Progress("a", 0, 3, "step")) == [0, 1, 2] and not list(tmp_path.iterdir())
    monkeypatch.setenv("LAMO_PROGRESS", str(tmp_path / "no/folder/progress.json"))
    assert list(progress.Progress("a", 0, 3, "step")) == [0, 1, 2]
