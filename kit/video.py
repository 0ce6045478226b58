"""A finished run's episodes as a moving picture.

    python evaluate.py mini/hopper-medium-0.01/lamo/seed0 --video hopper.gif
    python evaluate.py mini/hopper-medium-0.01/lamo/seed0 --video hopper.mp4 --episodes 3
    make videos                                                  # videos/RUN.gif, of each task one

reads   runs/RUN/config.json and final.safetensors; eval.json and eval.csv if they are there
writes  FILE: above each picture the run, the step, the return so far, and the return-to-go that the policy
        sees next. A GIF leaves out frames until it is under 0.7 MB; an MP4 has every step

Filmed are the first episodes at the largest target return. They are played side by side with all that the
evaluation played beside them, because sums of a smaller batch round otherwise and long episodes then differ:
so a film shows the very episode of a row of eval.csv. --at_once 1 plays it alone: quicker, and otherwise.
No screen is needed. MuJoCo's models are drawn through EGL, or else OSMesa (MUJOCO_GL= names one); Atari's
emulator draws by itself, in the game's colours at twice its resolution, while the policy sees its own frames.
"""

import importlib.util
import io
import os
import subprocess
import sys

# what does not draw here would end the program at the import of mujoco
ASKED = os.environ.pop("MUJOCO_GL", "")

import gymnasium as gym
import imageio.v2 as imageio
import mujoco
import numpy as np
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer
from PIL import Image, ImageDraw, ImageFont

from kit import artifacts, fail, seals
from kit.envs import make_env
from kit.policy import counted

WIDTH, HEIGHT, BAR = 320, 240, 38  # pixels; BAR is what is written above
GIF_BYTES = 700_000                # at most
GIF_FRAMES = 240                   # at most
GIF_SECONDS = 5, 12                # at least, at most
COLOURS = 96                       # of a GIF's palette
FPS = 30                           # of an MP4, and at most
# Debian's packages, for those who lack them
LIBRARIES = {"egl": "libEGL (apt install libegl1 libopengl0)", "osmesa": "libOSMesa (apt install libosmesa6)"}
PROBE = "from mujoco.{} import GLContext; GLContext(16, 16).make_current()"
# where the environment's own view does not serve
CAMERAS = {"Reacher2d": {"lookat": np.zeros(3), "distance": 3.2, "elevation": -90.0, "azimuth": 90.0}}
REACHER_COLOURS = {"floor": (0.93, 0.93, 0.9, 1), "root": (0.3, 0.3, 0.3, 1), "upper": (0.2, 0.45, 0.7, 1),
                   "lower": (0.35, 0.65, 0.85, 1), "target": (0.85, 0.3, 0.2, 1)}


# --- the command -------------------------------------------------------------------------------

def film(policy, play_together, run, video, episodes=None, target_returns=None, at_once=None, **_):
    """Write `video`, a .gif or .mp4: the first episodes (one) at the target returns (the largest) of a run.

    policy          evaluate.load_policy(run)
    play_together   evaluate.play_together, which plays a list of (target return, episode) in lock-step
    at_once         how many to play side by side, if not as many as the evaluation did
    """
    check(video)
    config, folder = policy.config, artifacts.run_folder(run)
    if (folder / "eval.json").exists():  # how it was evaluated, which may not be as it was meant to be
        how = artifacts.read_json(folder / "eval.json", "delete it")
        config = config | {name: value for name, value in how.items() if name in config}
        policy.model.bf16 = config.get("dtype") == "bfloat16"
    at_once = at_once or config["at_once"]
    every = config.get("target_returns", [None])
    wanted = (target_returns if every != [None] else None) or [max(every, key=lambda target: target or 0.0)]
    every = every if set(wanted) <= set(every) else wanted
    jobs = [(target, n) for target in every for n in range(max(config["episodes"], episodes or 1))]
    chosen = [(target, n) for target in wanted for n in range(episodes or 1)]
    reels = []
    for first in range(0, len(jobs), at_once):
        together = jobs[first:first + at_once]
        reels += play_filmed(run, policy, config, play_together, together, chosen, video)
    write(video, [(frame, reel.seconds) for reel in reels for frame in reel.frames])
    for reel in reels:
        report(run, config, reel)
    print(f"{video}: {os.path.getsize(video) / 1e6:.2f} MB")


def play_filmed(run, policy, config, play_together, jobs, chosen, path):
    """The reels of those of `jobs` that are chosen; the others are played beside, until these are over."""
    if not set(jobs) & set(chosen):
        return []
    envs = [make_env(config) for _ in jobs]
    reels = []
    for i, job in enumerate(jobs):
        if job in chosen:
            envs[i] = Reel(envs[i], run, config, *job, limit=GIF_FRAMES if path.suffix == ".gif" else None)
            reels.append(envs[i])
    for reel in reels:
        reel.beside = reels
    try:
        play_together(policy, config, envs, jobs, None)
    except Filmed:
        pass
    for env in envs:
        env.close()
    return reels


def report(run, config, reel):
    """One line on what was filmed, and whether that is what was evaluated."""
    row = recorded(run, config, reel)
    same = ("" if row is None else ", as in eval.csv" if row["return"] == f"{reel.total:.4f}" else
            f"; eval.csv has {row['return']} after {row['length']}, where it had others beside it")
    score = 100 * (reel.total - config["reference_min"]) / (config["reference_max"] - config["reference_min"])
    target = "" if reel.target is None else f" at target {reel.target:g}"
    print(f"{run}: episode {reel.episode}{target}: return {reel.total:.4f} after {reel.t} steps, normalised "
          f"{score:.1f}{same}")


def recorded(run, config, reel):
    """The row of eval.csv of a filmed episode; None if it has none."""
    path, target = artifacts.run_folder(run) / "eval.csv", "" if reel.target is None else f"{reel.target:g}"
    rows = artifacts.read_csv(path, artifacts.RESULT_COLUMNS) if path.exists() else []
    return next((row for row in rows if int(row["step"]) == config["steps"]
                 and row["target_return"] == target and int(row["episode"]) == reel.episode), None)


# --- an environment that is filmed -------------------------------------------------------------

class Filmed(Exception):
    """All that is filmed is over; nobody waits for the episodes beside it."""


class Reel(gym.Wrapper):
    """An environment, played as ever, and the frames of its episode: PNGs, the last one always among them.

    Of more than `limit` frames every second one is dropped, and from then on half as many taken.
    """

    def __init__(self, env, run, config, target, episode, limit=None):
        super().__init__(env)
        self.run, self.config, self.target, self.episode, self.limit = run, config, target, episode, limit
        self.draw, self.close_view, self.seconds_a_step = view(env, config["env"])
        self.frames, self.stride, self.beside, self.over = [], 1, [self], False

    def reset(self, **kwargs):
        first = self.env.reset(**kwargs)
        self.t, self.total, self.to_go = 0, 0.0, self.target
        self.take()
        return first

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.t, self.total, self.over = self.t + 1, self.total + reward, terminated or truncated
        if self.target is not None:
            self.to_go -= counted(reward, self.config)
        if self.over or self.t % self.stride == 0:
            self.take()
        if all(reel.over for reel in self.beside):
            raise Filmed
        return observation, reward, terminated, truncated, info

    def take(self):
        frame = titled(self.draw(), self.run, self.episode, self.t, self.total, self.to_go, self.target)
        png = io.BytesIO()
        Image.fromarray(frame).save(png, "PNG", compress_level=1)
        self.frames.append(png.getvalue())
        if self.limit and len(self.frames) > self.limit and not self.over:
            self.frames, self.stride = self.frames[::2], 2 * self.stride

    @property
    def seconds(self):
        """Between two frames, in the world's time."""
        return self.stride * self.seconds_a_step

    def close(self):
        self.close_view()
        super().close()


def titled(picture, run, episode, t, total, to_go, target):
    """The picture (h, w, 3) below two lines of text: (BAR + h, w, 3)."""
    frame = Image.new("RGB", (picture.shape[1], BAR + picture.shape[0]), (24, 26, 32))
    frame.paste(Image.fromarray(picture), (0, BAR))
    pen, (_, cell, method, seed) = ImageDraw.Draw(frame), run.split("/")
    asked = "" if target is None else f" · target {target:g}"
    line, size = f"{cell} · {method} · {seed}{asked} · episode {episode}", 12
    while pen.textlength(line, ImageFont.load_default(size)) > WIDTH - 12:
        size -= 1
    pen.text((6, 10), line, (160, 168, 180), ImageFont.load_default(size), anchor="lm")
    for x, words in ((6, f"step {t:,}"), (84, f"return {number(total)}"),
                     (184, "" if to_go is None else f"return-to-go {number(to_go)}")):
        pen.text((x, 18), words, (255, 255, 255), ImageFont.load_default(13))
    return np.asarray(frame)


def number(value):
    """A return, in few digits."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.1f}"


# --- pictures ----------------------------------------------------------------------------------

def view(env, name):
    """(draws a picture (h, w, 3) uint8, closes what draws, seconds of a step) for an environment."""
    base = env.unwrapped
    if hasattr(base, "ale"):
        return (lambda: base.ale.getScreenRGB().repeat(2, 0).repeat(2, 1)), (lambda: None), 4 / 60
    base = getattr(base, "robot_env", base)  # the kitchen's
    if name == "Reacher2d":
        colour(base.model)
    os.environ["MUJOCO_GL"] = backend()
    camera = CAMERAS.get(name, base.mujoco_renderer.default_cam_config)
    follows = "track" if "track" in [base.model.camera(i).name for i in range(base.model.ncam)] else None
    if follows:  # the floor bears further than it is drawn, and a cheetah runs past that
        base.model.geom_size[base.model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE, :2] *= 10
        base.model.mat_texrepeat[:] *= 10
    renderer = MujocoRenderer(base.model, base.data, camera, WIDTH, HEIGHT, 2000, camera_name=follows)
    renderer.render("rgb_array")  # makes the scene that is changed here
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        renderer.viewer.scn.flags[flag] = 0  # which take eight times as long without a graphics card
    return (lambda: renderer.render("rgb_array")), renderer.close, base.dt


def colour(model):
    """Reacher2d's model file has no colours."""
    for part, rgba in REACHER_COLOURS.items():
        model.geom(part).rgba[:] = rgba
    model.vis.headlight.ambient[:], model.vis.headlight.diffuse[:] = 0.7, 0.3
    model.vis.headlight.specular[:] = 0


def backend():
    """"egl" or "osmesa", whichever works here; one line and exit if neither does."""
    names = [ASKED] if ASKED else list(LIBRARIES)
    for name in names:
        if renders(name):
            return name
    fail("nothing here draws without a screen; what is missing is "
         f"{' or '.join(LIBRARIES.get(name, name) for name in names)}, or a driver (libgl1-mesa-dri)")


def renders(name):
    """Tried in a process of its own, because PyOpenGL keeps to the first library it is asked for."""
    return subprocess.run([sys.executable, "-c", PROBE.format(name)], env=os.environ | {"MUJOCO_GL": name},
                          capture_output=True).returncode == 0


# --- files -------------------------------------------------------------------------------------

def check(path):
    """One line and exit, before anything is played, if the file cannot be written."""
    if path.suffix not in (".gif", ".mp4"):
        fail(f"{path} is neither .gif nor .mp4")
    if path.suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        fail(f"{path} needs ffmpeg: .venv/bin/pip install -r requirements-watch.txt; or give FILE.gif")


def write(path, frames):
    """frames: (PNG, seconds in the world that it stands for) each."""
    pictures = [Image.open(io.BytesIO(png)).convert("RGB") for png, _ in frames]
    seconds = np.array([seconds for _, seconds in frames])
    seals.remove_leftovers(path.parent, path.stem)
    if path.suffix == ".gif":
        artifacts.write_whole(path, lambda part: write_gif(part, pictures, seconds))
    else:
        artifacts.write_whole(path, lambda part: imageio.mimwrite(
            part, [np.asarray(picture) for picture in pictures], fps=min(FPS, 1 / seconds.min()),
            macro_block_size=2))


def write_gif(path, pictures, seconds):
    """At the world's speed, or faster or slower so that it lasts GIF_SECONDS; the last frame then stays for
    two. One palette for all, of three frames; nothing is dithered, which compresses badly."""
    three = np.concatenate([np.asarray(pictures[i]) for i in (0, len(pictures) // 2, -1)])
    palette = Image.fromarray(three).quantize(COLOURS, Image.Quantize.MAXCOVERAGE)
    pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    starts = 1000 * np.append(0, np.cumsum(seconds)) * np.clip(seconds.sum(), *GIF_SECONDS) / seconds.sum()
    size, n = GIF_BYTES, len(pictures)
    while size >= GIF_BYTES and n > 1:
        kept = np.linspace(0, len(pictures) - 1, n).astype(int)  # the first and the last among them
        waits = np.diff(starts[kept]).round(-1).astype(int).clip(20)
        first, *others = [pictures[i] for i in kept]
        first.save(path, save_all=True, append_images=others, loop=0, disposal=1,
                   duration=[*waits.tolist(), 2000])
        size = path.stat().st_size
        n = int(n * min(0.9, 0.95 * GIF_BYTES / size))
