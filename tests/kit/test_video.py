"""kit/video.py: a filmed episode is the evaluation's; frames carry text; what is missing is one line."""

import io

import numpy as np
import pytest
from conftest import one_line, save_cell
from PIL import Image

import evaluate
import train
from kit import artifacts, video
from kit.envs import EPISODE_SEED, make_env
from kit.settings import configuration

WORKING = next((name for name in video.LIBRARIES if video.renders(name)), None)
draws = pytest.mark.skipif(not WORKING, reason="neither EGL nor OSMesa draws here")
RUN = "paper/hopper-medium-0.1/dt/seed0"
SHORT = {"device": "cpu", "steps": 2, "eval_every": 2, "log_every": 2, "batch_size": 8, "horizon": 12,
         "context": 5}


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A folder with a trained run of Hopper, played by 3 episodes at two targets, 4 side by side."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(video, "ASKED", WORKING)
    save_cell(tmp_path)
    train.train(RUN, **SHORT)
    evaluate.evaluate(RUN, "cpu", episodes=3, target_returns=[3600.0, 500.0], at_once=4)
    return tmp_path


def film(path, **options):
    video.film(evaluate.load_policy(RUN, "cpu"), evaluate.play_together, RUN, path, **options)


def frames_of(path):
    with Image.open(path) as picture:
        for i in range(picture.n_frames):
            picture.seek(i)
            yield np.asarray(picture.convert("RGB"))


@draws
def test_what_is_filmed_is_what_was_evaluated(finished, capsys):
    rows = artifacts.read_csv(f"runs/{RUN}/eval.csv", artifacts.RESULT_COLUMNS)
    before = open(f"runs/{RUN}/eval.csv").read()
    film(finished / "film.gif", episodes=2, target_returns=[500.0])  # across both batches
    said = capsys.readouterr().out.splitlines()[-3:]
    wanted = [row for row in rows if row["target_return"] == "500" and row["episode"] in ("0", "1")]
    for line, row in zip(said[:2], wanted, strict=True):
        assert f"episode {row['episode']} at target 500: return {row['return']} after {row['length']}" in line
        assert line.endswith(", as in eval.csv")
    assert "film.gif" in said[2]
    pictures = list(frames_of(finished / "film.gif"))
    assert len(pictures) == sum(int(row["length"]) + 1 for row in wanted)
    assert {picture.shape for picture in pictures} == {(video.BAR + 240, 320, 3)}
    assert (finished / "film.gif").stat().st_size < video.GIF_BYTES
    assert open(f"runs/{RUN}/eval.csv").read() == before  # it only looks


@draws
def test_another_return_than_evaluated_is_said(finished, capsys):
    path = artifacts.run_folder(RUN) / "eval.csv"
    rows = artifacts.read_csv(path, artifacts.RESULT_COLUMNS)
    artifacts.write_csv(path, tuple(rows[0]), [row | {"return": "7.0000"} for row in rows])
    film(finished / "film.gif", at_once=1)
    assert "; eval.csv has 7.0000 after" in capsys.readouterr().out


def reel_of(run, monkeypatch=None, **options):
    config = configuration(run)
    target = config.get("target_returns", (None,))[0]
    return video.Reel(make_env(config), run, config, target, 0, **options)


def played(reel, action, steps):
    reel.reset(seed=EPISODE_SEED)
    for _ in range(steps):
        reel.step(action)
    reel.close()
    return [np.asarray(Image.open(io.BytesIO(frame))) for frame in reel.frames]


def test_atari_is_in_colour_at_twice_its_size_and_the_policy_sees_what_it_saw():
    reel = reel_of("mini/breakout-medium-0.1/dt/seed0")
    plain = make_env(reel.config)
    seen, _ = reel.reset(seed=3)
    assert np.array_equal(seen, plain.reset(seed=3)[0])
    for action in (1, 2, 3, 0):
        seen, reward, *_ = reel.step(action)
        assert np.array_equal(seen, plain.step(action)[0]) and seen.shape == (4, 84, 84)
    frame = np.asarray(Image.open(io.BytesIO(reel.frames[-1])))
    assert frame.shape == (video.BAR + 420, 320, 3)
    assert np.array_equal(frame[video.BAR:], plain.unwrapped.ale.getScreenRGB().repeat(2, 0).repeat(2, 1))
    assert frame[video.BAR:].std(-1).max() > 50  # the bricks


@draws
@pytest.mark.parametrize("cell", ["hopper-medium-1", "reacher2d-medium-1", "kitchen-complete-1"])
def test_mujoco_is_drawn_and_something_moves(monkeypatch, cell):
    monkeypatch.setattr(video, "ASKED", WORKING)
    reel = reel_of(f"mini/{cell}/dt/seed0")
    first, *_, last = played(reel, np.full(reel.config["action_dim"], 0.9), 3)
    assert first.shape == (video.BAR + video.HEIGHT, video.WIDTH, 3)
    assert first[video.BAR:].std() > 15                                        # not a wall
    assert (first[video.BAR:] != last[video.BAR:]).any()


@draws
def test_a_cheetah_that_runs_far_still_runs_on_a_floor(monkeypatch):
    monkeypatch.setattr(video, "ASKED", WORKING)
    env = make_env(configuration("mini/halfcheetah-medium-1/dt/seed0"))
    env.reset(seed=0)
    draw, close, _ = video.view(env, "HalfCheetah-v4")
    near, base = draw(), env.unwrapped
    base.data.qpos[0] = 90.0  # metres
    base.step(np.zeros(6))
    assert abs(draw()[-20:].std() - near[-20:].std()) < 15 < near[-20:].std()  # squares
    close()


def test_frames_carry_what_was_earned_and_what_is_still_to_come():
    picture = np.zeros((40, 320, 3), np.uint8)
    say = {"run": RUN, "episode": 0, "t": 5, "total": 4.5, "to_go": 3595.5, "target": 3600.0}
    frame = video.titled(picture, **say)
    assert frame.shape == (video.BAR + 40, 320, 3) and not frame[video.BAR:].any()
    for name, value in (("t", 6), ("total", 5.5), ("to_go", 3594.5), ("episode", 1), ("to_go", None)):
        other = video.titled(picture, **say | {name: value})
        assert (other != frame).any(), name
    long = video.titled(picture, **say | {"run": "mini/halfcheetah-medium-0.005/lamo-smollm2/seed123"})
    assert (long[:video.BAR, -5:] == long[0, 0]).all()  # it ends before the edge does


def test_returns_to_go_are_those_the_policy_counts():
    reel = reel_of("mini/qbert-medium-1/dt/seed0")
    reel.reset(seed=0)
    reel.env = type("Pays", (), {"step": lambda self, action: (None, 25.0, False, False, {})})()
    reel.step(0)
    assert (reel.total, reel.to_go) == (25.0, reel.target - 1)


def test_a_long_episode_keeps_its_end_and_no_more_frames_than_the_limit():
    reel = reel_of("mini/pong-medium-1/dt/seed0", limit=8)
    reel.env.env._max_episode_steps = 41
    with pytest.raises(video.Filmed):
        played(reel, 0, 100)
    assert reel.over and reel.stride == 8 and len(reel.frames) <= 9
    assert reel.t == 41


def test_a_gif_stays_under_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "GIF_BYTES", 60_000)
    rng, pngs = np.random.default_rng(0), []
    for i in range(40):
        file = io.BytesIO()
        noise = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
        noise[:10, :] = 6 * i
        Image.fromarray(noise).save(file, "PNG")
        pngs.append((file.getvalue(), 0.02))
    video.write(tmp_path / "noise.gif", pngs)
    assert (tmp_path / "noise.gif").stat().st_size < 60_000
    pictures = list(frames_of(tmp_path / "noise.gif"))
    assert 2 < len(pictures) < 40 and pictures[-1][:10].mean() > 200  # the last one is kept


def test_an_mp4_has_every_frame(tmp_path):
    reader = pytest.importorskip("imageio_ffmpeg")
    file = io.BytesIO()
    Image.fromarray(np.full((278, 320, 3), 90, np.uint8)).save(file, "PNG")
    video.write(tmp_path / "film.mp4", [(file.getvalue(), 0.008)] * 12)
    assert reader.count_frames_and_secs(str(tmp_path / "film.mp4"))[0] == 12


# --- what is missing ---------------------------------------------------------------------------

def test_without_a_library_that_draws_it_is_one_line(monkeypatch):
    monkeypatch.setattr(video, "ASKED", "")
    monkeypatch.setattr(video, "PROBE", "raise SystemExit('no {}')")
    with pytest.raises(SystemExit) as stop:
        video.backend()
    line = str(stop.value)
    assert "\n" not in line
    assert "libegl1" in line and "libosmesa6" in line
    monkeypatch.setattr(video, "ASKED", "osmesa")  # asked for, so nothing else is taken
    with pytest.raises(SystemExit, match=r"missing is libOSMesa \(apt install libosmesa6\), or"):
        video.backend()


def test_a_library_that_is_asked_for_and_does_not_draw_is_one_line(kit):
    done = kit("-c", "from kit import video; video.backend()", check=False, MUJOCO_GL="nonsense")
    assert "what is missing is nonsense" in one_line(done)


def test_the_first_that_draws_is_taken(monkeypatch):
    monkeypatch.setattr(video, "ASKED", "")
    monkeypatch.setattr(video, "PROBE", "raise SystemExit('{}' == 'egl')")
    assert video.backend() == "osmesa"


def test_files_that_cannot_be_written_are_said_before_anything_is_played(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="neither .gif nor .mp4"):
        video.check(tmp_path / "film.avi")
    monkeypatch.setattr(video.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install -r requirements-watch.txt"):
        video.check(tmp_path / "film.mp4")
    video.check(tmp_path / "film.gif")
