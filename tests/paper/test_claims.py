"""paper/claims.py: paired differences from CSVs, what is missing, over subsets before seeds."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from conftest import evaluated_as, one_line
from scipy import stats
from test_plot import make_rows

from kit import artifacts
from paper import claims, grid

COLUMNS = artifacts.RESULT_COLUMNS + artifacts.EXTRA_COLUMNS


def write(path, rows):
    text = artifacts.csv_text(COLUMNS, [{name: row.get(name, "") for name in COLUMNS} for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def runs(method, scores, losses, of=lambda seed: 0, **more):
    """Rows of {seed: score} and {seed: held-out loss}; the first checkpoint is better by 0.01."""
    target = None if method == "bc" else 3600.0
    return [row for seed, score in enumerate(scores) for step in (1, 2) for row in make_rows(
        {step: [score - 1, score + 1]}, method, target, seed=seed, subset=of(seed),
        heldout_loss=losses[seed] - 0.01 * (step == 1), score_window=1, **more)]


LAMO, DT = ([40.0, 44.0, 48.0], [0.14, 0.15, 0.16]), ([30.0, 36.0, 36.0], [0.15, 0.15, 0.17])


def printed(folder, capsys):
    claims.main(claims.OPTIONS.parse_args([str(folder)]))
    return capsys.readouterr().out


def test_a_claim_is_a_paired_difference_with_its_interval(tmp_path, capsys):
    write(tmp_path / "hopper-medium-0.01.csv", runs("lamo", *LAMO) + runs("dt", *DT))
    out = printed(tmp_path, capsys)
    head, line = out[out.index("lamo - dt"):].splitlines()[:2]
    assert "score" in head and "held-out loss" in head and "its least" in head
    # differences 10, 8, 12 and -0.01, 0, -0.01; t of two degrees of freedom is 4.303
    half, small = 4.303 * 2 / np.sqrt(3), 4.303 * 0.0057735 / np.sqrt(3)
    assert "mini/hopper-medium-0.01  3 seeds" in line and "mini@1" in line
    assert f"+10.0 [{10 - half:+.1f}, {10 + half:+.1f}] +" in line
    assert line.count(f"-0.0067 [{-0.0066667 - small:+.4f}, {-0.0066667 + small:+.4f}]") == 2
    assert "] -" not in line  # that interval holds 0
    missing = out[out.index("missing"):].splitlines()
    assert "  lamo and lamo-random: mini/hopper-medium-0.01" in missing
    assert "  lamo-mlp and lamo-linear: mini/hopper-medium-0.01" in missing
    assert not any("lamo and dt" in line for line in missing)


def test_subsets_and_few_or_no_runs(tmp_path, capsys):
    walker, hopper = ({"task": f"{name}-medium", "ratio": 0.1} for name in ("walker2d", "hopper"))
    rows = (runs("lamo", *LAMO, **walker) + runs("dt", *DT, **walker)
            + runs("bc", [10.0], [float("nan")], **walker))
    write(tmp_path / "walker2d-medium-0.1.csv", rows)
    write(tmp_path / "walker2d-medium-0.1-d3.csv", rows)  # one subset's alone, which no claim is made of
    write(tmp_path / "walker2d-medium-0.1-dN.csv.gz", [
        row for method, (scores, losses) in (("lamo", LAMO), ("dt", DT))
        for row in runs(method, [*scores, 50.0], [*losses, 0.1], lambda seed: seed, **walker)])
    write(tmp_path / "hopper-medium-0.1.csv", runs("lamo", *LAMO, **hopper) + runs("lamo-mlp", *DT, **hopper))
    out = printed(tmp_path, capsys)
    assert "4 subsets" in out[out.index("lamo - dt"):].splitlines()[1]  # more than three seeds of one subset
    alone = out[out.index("lamo - bc"):].splitlines()[1]
    assert "1 seed " in alone and "+30.0  not measured" in alone
    # Hopper's LaMo has linear embeddings, elsewhere it has an MLP
    linear = out[out.index("lamo-mlp - lamo-linear"):].splitlines()[1]
    assert linear.split()[0] == "mini/hopper-medium-0.1" and "-10.0 [" in linear


def test_what_cannot_be_read_is_said_and_hides_nothing(tmp_path, capsys):
    write(tmp_path / "hopper-medium-0.01.csv", runs("lamo", *LAMO) + runs("dt", *DT))
    (tmp_path / "hopper-medium-0.1.csv").write_text("a,b\n1,2\n")
    write(tmp_path / "hopper-medium-1.csv", runs("lamo", *LAMO))
    (tmp_path / "hopper-medium-0.5.csv.gz").write_bytes(b"\x1f\x8bno")
    write(tmp_path / "foo.csv", runs("lamo", *LAMO))
    out = printed(tmp_path, capsys)
    assert "lamo - dt" in out
    assert claims.main(claims.OPTIONS.parse_args([str(tmp_path)])) == 1  # as the report does
    capsys.readouterr()
    for name in ("hopper-medium-0.1.csv", "hopper-medium-1.csv", "hopper-medium-0.5.csv.gz", "foo.csv"):
        assert sum(name in line for line in out.splitlines() if line.startswith("not in it")) == 1
    for folder, more in (("mini", ""), ("paper", " PROFILE=paper")):
        (tmp_path / folder).mkdir()
        with pytest.raises(SystemExit, match=f"holds no CSV of a cell; .* make hopper-medium-0.01{more}$"):
            claims.main(claims.OPTIONS.parse_args([str(tmp_path / folder)]))


def test_a_file_of_two_profiles_is_in_no_claim(tmp_path, capsys):
    write(tmp_path / "hopper-medium-0.01.csv", runs("lamo", *LAMO) + runs("dt", *DT, profile="paper"))
    out = printed(tmp_path, capsys)
    assert "holds rows of another cell, or of two profiles" in out and "mini/hopper-medium-0.01" not in out


def test_the_folder_above_names_the_one_that_is_meant(tmp_path):
    write(tmp_path / "mini/hopper-medium-0.01.csv", runs("lamo", *LAMO))
    with pytest.raises(SystemExit, match=f"holds no CSV of a cell, and {tmp_path}/mini does; name that"):
        claims.main(claims.OPTIONS.parse_args([str(tmp_path)]))


def test_two_replications_have_no_interval_and_what_differs_is_said(tmp_path, capsys):
    rows = (runs("lamo", [40.0, 44.0], [0.1, 0.1]) + runs("dt", [30.0, 34.0], [0.2, 0.2], changed="steps=50")
            + runs("lamo-random", *LAMO, heldout_data="abc") + runs("lamo-early", *LAMO, heldout_data="def")
            + runs("wiki", DT[0], [0.1, float("nan"), float("nan")]))
    write(tmp_path / "hopper-medium-0.01.csv", rows)
    write(tmp_path / "hopper-medium-0.01.csv.old", runs("lamo", *LAMO) + runs("dt", *DT))  # is none
    out = printed(tmp_path, capsys)
    line = out[out.index("lamo - dt"):].splitlines()[1]
    assert "2 seeds; dt steps=50  +10.0 " in line and "[" not in line and " + " not in line
    other = out[out.index("lamo-early - lamo-random "):].splitlines()[1]
    # held-out losses, over other episodes, decisions, bits per byte; and there is one target
    assert other.count("not measured") == 5
    assert "+0.0000 of 1" in out[out.index("lamo - wiki"):].splitlines()[1]
    with pytest.raises(SystemExit, match="none is not a folder that is there"):
        claims.main(claims.OPTIONS.parse_args([str(tmp_path), str(tmp_path / "none")]))


def test_discrete_bc_is_told_apart_by_decisions_and_not_by_its_penalised_loss(tmp_path, capsys):
    pong = {"task": "pong-medium", "ratio": 0.1}
    write(tmp_path / "pong-medium-0.1.csv", [
        row for method, missed in (("lamo", 0.3), ("dt", 0.25), ("bc", 0.2))
        for row in runs(method, *LAMO, heldout_decisions=missed, **pong)])
    out = printed(tmp_path, capsys)
    head, line = out[out.index("lamo - bc"):].splitlines()[:2]
    assert "decisions missed" in head and "+0.100 [+0.100, +0.100] +" in line
    assert line.count("not measured") == 4  # another target, both losses, and bits per byte
    line = out[out.index("lamo - dt"):].splitlines()[1]
    assert "+0.0000 [" in line and "+0.050 [" in line


@pytest.mark.parametrize("second, told", [("dt", True), ("lamo-random", True), ("lamo-frozen", False)])
def test_few_data_is_a_difference_of_differences(tmp_path, capsys, second, told):
    few, many = {"ratio": 0.01}, {"ratio": 0.1}
    for other, kind in ((few, LAMO), (many, ([38.0, 39.0, 40.0, 0.0], [0.1, 0.1, 0.1, 0.1]))):
        dt = DT if other is few else ([36.0, 36.0, 36.0, 0.0], [0.1, 0.1, 0.1, 0.1])
        write(tmp_path / f"hopper-medium-{other['ratio']}-dN.csv", [
            row for method, values in (("lamo", kind), (second, dt))
            for row in runs(method, *values, lambda seed: seed, **other)])
    out = printed(tmp_path, capsys)
    if not told:  # which nobody says of data
        assert f"lamo - {second}" in out and " less " not in out
        return
    line = out[out.index(f"lamo - {second} "):].splitlines()[3]
    # 10, 8, 12 less 2, 3, 4, over the three subsets that both ratios have
    mean, half = 7.0, 4.303 * np.std([8, 5, 8], ddof=1) / np.sqrt(3)
    assert "mini/hopper-medium-0.01 less 0.1  3 of both" in line
    assert f"+7.0 [{mean - half:+.1f}, {mean + half:+.1f}] +" in line


@pytest.mark.parametrize("few, many, told", [
    ("a a a", "a a a", True), ("a a a", "b b b", False), ("a a b", "a a c", False),
    ("a b c", "d d d", False), ("d d d", "a b c", False), ("a", "b", False), ("a", "a", True),
    ("a b c", "d e f", True)])  # each subset's own, as the paper profile has them: the interval covers that
def test_losses_over_other_episodes_are_not_taken_off_each_other(tmp_path, capsys, few, many, told):
    for task in ("hopper", "walker2d"):
        sets = {0.01: few.split(), 0.1: (many if task == "hopper" else few).split()}
        for ratio, held_out in sets.items():
            rows = [row | {"heldout_data": held_out[row["seed"]], "heldout_decisions": 0.1}
                    for method, (scores, losses) in (("lamo", LAMO), ("dt", DT))
                    for row in runs(method, scores[:len(held_out)], losses, lambda seed: seed,
                                    task=f"{task}-medium", ratio=ratio)]
            write(tmp_path / f"{task}-medium-{ratio}-dN.csv", rows)
    lines = printed(tmp_path, capsys).splitlines()
    over_tasks = (("lowest less next", told), ("mean of 2 tasks  ", True)) if len(few) > 1 else ()
    for name, measured in (("hopper-medium-0.01 less", told), ("walker2d-medium-0.01 less", True),
                           *over_tasks):
        [line] = [line for line in lines if name in line]
        assert "+0.0 " in line or name == "mean of 2 tasks  "
        # bits per byte never are, nor another target, nor starts here; else both losses, and decisions missed
        assert line.count("not measured") == (3 if measured else 6), line


def test_the_mean_over_tasks_is_of_the_seeds_that_all_have(tmp_path, capsys):
    other = ([30.0, 50.0, 10.0, 90.0], [1.5, 1.0, 2.0, 1.0]), ([31.0, 40.0, 15.0, 0.0], [2.0, 2.0, 2.0, 1.0])
    two = ([1.0, 2.0], [9.0, 1.0])
    for task, ratio, pair in (("hopper", 0.01, (LAMO, DT)),
                              ("hopper", 0.1, (DT, ([29.0, 35.0, 35.0], DT[1]))),
                              ("walker2d", 0.1, other), ("walker2d", 1.0, (DT, DT)),
                              ("halfcheetah", 0.1, (two, two))):
        write(tmp_path / f"{task}-medium-{ratio:g}.csv", [
            row for method, values in zip(("lamo", "dt"), pair, strict=True)
            for row in runs(method, *values, task=f"{task}-medium", ratio=ratio)])
    out = printed(tmp_path, capsys)
    mean, shifted = [line for line in out.splitlines() if "mean of" in line]
    # HalfCheetah, of two replications, has no part; Walker2d's fourth has no partner
    scores = np.array([[10, 8, 12], [-1, 10, -5]])
    losses = 100 * np.array([[-0.01, 0, -0.01], [-0.5, -1, 0]]) / [[0.47 / 3], [7 / 4]]
    half, small = (np.ptp(stats.ttest_ind(one, -other, equal_var=False).confidence_interval()) / 4
                   for one, other in (scores, losses))  # the tasks' own deviations are the wider ones
    assert "mini/mean of 2 tasks" in mean and "3 of each" in mean
    assert f"{scores.mean():+.1f} [{scores.mean() - half:+.1f}, {scores.mean() + half:+.1f}]" in mean
    assert f"{losses.mean():+.1f} % [{losses.mean() - small:+.1f} %, {losses.mean() + small:+.1f} %]" in mean
    scores = scores - 0.5  # at its next ratio LaMo is 1 ahead on Hopper; all else is even there
    assert "mini/mean of 2 tasks, lowest less next ratio" in shifted
    assert f"{scores.mean():+.1f} [{scores.mean() - half:+.1f}, {scores.mean() + half:+.1f}]" in shifted
    assert f"{losses.mean():+.1f} % [" in shifted


def test_ratios_are_beside_each_other_also_where_folders_hold_both_profiles(tmp_path, capsys):
    for profile in ("paper", "mini"):
        for ratio in (0.01, 0.1):
            write(tmp_path / profile / f"hopper-medium-{ratio}.csv", [
                row for method, values in (("lamo", LAMO), ("dt", DT))
                for row in runs(method, *values, ratio=ratio, profile=profile)])
    claims.main(claims.OPTIONS.parse_args([str(tmp_path / "paper"), str(tmp_path / "mini")]))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "less 0.1" in line] == [
        "mini/hopper-medium-0.01", "paper/hopper-medium-0.01"]


def test_subsets_come_before_as_many_seeds_of_one(tmp_path, capsys):
    for name, of in (("", lambda seed: 0), ("-dN", lambda seed: seed)):
        write(tmp_path / f"hopper-medium-0.01{name}.csv", runs("lamo", *LAMO, of) + runs("dt", *DT, of))
    out = printed(tmp_path, capsys)
    assert "3 subsets" in out[out.index("lamo - dt"):].splitlines()[1]


def test_make_claims(kit):
    assert "holds no CSV" in one_line(kit("make", "claims", check=False))
    write(kit.folder / "results/shipped/mini/hopper-medium-0.1-dN.csv.gz", [
        row for method, (scores, losses) in (("lamo", LAMO), ("dt", DT))
        for row in runs(method, scores, losses, lambda seed: seed, ratio=0.1)])
    out = kit("make", "claims").stdout
    assert out.startswith("of the rows in results/shipped/mini\n") and "mini/hopper-medium-0.1 " in out
    assert "results/paper holds no CSV" in one_line(kit("make", "claims", "PROFILE=paper", check=False))
    write(kit.folder / "results/mini/hopper-medium-0.01.csv", runs("lamo", *LAMO) + runs("dt", *DT))
    out = kit("make", "claims").stdout
    assert out.startswith("of the rows in results/mini\n") and "lamo - dt" in out and "-0.1 " not in out
    (kit.folder / "results/mini").rename(kit.folder / "others")
    assert "lamo - dt" in kit("make", "claims", "RESULTS=others").stdout
    assert "paper.report mini --results 'others'\n" in kit("make", "-n", "report", "RESULTS=others").stdout
    alone = kit.folder / "others/hopper-medium-0.01.csv"
    alone.rename(alone.with_stem("hopper-medium-0.01-d3"))
    assert "-d3.csv is of subset 3 alone" in one_line(kit("make", "claims", "RESULTS=others", check=False))
    assert "no profile 'minni'" in kit("make", "claims", "PROFILE=minni", check=False).stderr


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_other_starts_count_where_seeds_share_them(profile):
    ours, theirs = (runs(*of, profile=profile) for of in (("lamo", *LAMO), ("dt", *DT)))
    starts = claims.compare_file(ours + theirs, ours, theirs).pairs["starts"]
    assert (starts is None) == (profile == "paper")


def test_one_replication_of_a_table_of_subsets_has_its_own_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [row for row in runs("lamo", *LAMO, lambda seed: seed) if row["seed"] == 1]
    write(tmp_path / "results/mini/hopper-medium-0.01-dN.csv", rows)
    for name in ("hopper-medium-0.01", "hopper-medium-0.01-d1"):
        run = artifacts.run_folder(f"mini/{name}/lamo/seed1")
        evaluated_as(run, rows)
        artifacts.write_json(run / "config.json", {"cell": name, "code": "abc"})
        artifacts.write_json(run / "eval.json", {"played_by": [{"code": "def"}]})
    cells, _ = grid.gather("mini", Path("results/mini"))
    (record,) = cells["hopper-medium-0.01"]["lamo"]["records"].values()
    assert (record["cell"], record["code"]) == ("hopper-medium-0.01-d1", "abc+def")
    evaluated_as(run, [row | {"length": 2} for row in rows])
    cells, (trouble,) = grid.gather("mini", Path("results/mini"))
    assert "d1/lamo/seed1 was trained or played anew since" in trouble
    assert not cells["hopper-medium-0.01"]["lamo"]["records"]


def test_the_report_takes_subsets_before_seeds_of_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results/mini"
    write(folder / "hopper-medium-0.01.csv", runs("lamo", *LAMO) + runs("dt", *DT) + runs("wiki", *DT))
    write(folder / "hopper-medium-0.01-d3.csv", runs("lamo", *DT))
    of_subsets = [row for method in ("lamo", "bc")
                  for row in runs(method, [10.0, 20.0], [0.1, 0.1], lambda seed: seed)]
    write(folder / "hopper-medium-0.01-dN.csv", of_subsets + runs("dt", [7.0], [0.1], lambda seed: seed))
    for name, seed in (("hopper-medium-0.01", 0), ("hopper-medium-0.01-d1", 1), ("hopper-medium-0.01-d1", 0)):
        run = artifacts.run_folder(f"mini/{name}/lamo/seed{seed}")
        artifacts.write_json(run / "config.json", {"cell": name})
        evaluated_as(run, [row for row in of_subsets if row["method"] == "lamo" and row["seed"] == seed])
    cells, troubles = grid.gather("mini", Path("results/mini"))
    assert list(cells) == ["hopper-medium-0.01"] and not troubles
    found = {method: (line["over"], line["score"]) for method, line in cells["hopper-medium-0.01"].items()}
    assert found == {"lamo": ("subsets", 15.0), "dt": ("seeds", 34.0), "wiki": ("seeds", 34.0),
                     "bc": ("subsets", 15.0)}  # one replication is no better than three seeds
    records = cells["hopper-medium-0.01"]["lamo"]["records"]
    assert {seed: record["cell"] for seed, record in records.items()} == {
        0: "hopper-medium-0.01", 1: "hopper-medium-0.01-d1"}
