"""Who plays the data that the kit makes: trained agents in assets/players/, and scripts.

MuJoCo      D4RL's "medium" data come from a SAC agent stopped when it reaches about a third of the
            expert's return, sampled stochastically (Fu et al. 2020, section 5). The mini profile's come
            from the same kind of agent, trained here on the same environment, stopped by the same rule.
Reacher2d   also SAC, stopped where its episodes earn about as much as the authors' dataset, 36 of 100.
Kitchen     a script that moves the arm along way-points. Atari: scripts that read the emulator's memory.

    .venv/bin/pip install -r requirements-players.txt    # stable-baselines3, needed only to train
    .venv/bin/python players.py hopper-medium            # half an hour on one core
    .venv/bin/python players.py reacher2d-medium --fraction 0.3 --every 5000 --episodes 200
    .venv/bin/python players.py hopper-medium --measure  # a player's returns, trained or scripted

reads   nothing but the environment
writes  build/players/PLAYER/STEP.npz   the actor every `--every` steps (git ignores it)
        build/players/PLAYER/curve.csv  step, mean, standard deviation and count of stochastic returns
        assets/players/PLAYER.npz       the first actor that reached the goal, with its provenance
        assets/players/PLAYER.csv       the learning curve up to that actor

`prepare_data.py` imports `play_episode`, which needs no more than numpy and the environments.
"""

import argparse
import csv
import itertools
import json
import math
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import mujoco
import numpy as np

import tasks
from envs import KITCHEN_GOALS, kitchen_done, make_env

ASSETS = Path(__file__).parent / "assets" / "players"


def load(path):
    """The actor's arrays {name: float32 array} and its provenance (a dict) from an .npz file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name != "provenance"}
            return arrays, json.loads(str(file["provenance"]))
    except (OSError, KeyError, ValueError) as error:
        sys.exit(f"players: {path} is not a readable behaviour policy ({error}); "
                 "restore it with git, or train one: python players.py --help")


def act(actor, observation, rng=None):
    """Sample a ~ tanh(Normal(mean(s), std(s))), as SAC explores, or take tanh(mean(s)) without an rng.
    (S,) -> (A,) float32 in (-1, 1)."""
    hidden = observation.astype(np.float32)
    for layer in ("fc0", "fc1"):
        hidden = np.maximum(actor[f"{layer}/weight"] @ hidden + actor[f"{layer}/bias"], 0)
    mean = actor["mean/weight"] @ hidden + actor["mean/bias"]
    log_std = np.clip(actor["log_std/weight"] @ hidden + actor["log_std/bias"], -20, 2)
    if rng is not None:
        mean = mean + np.exp(log_std) * rng.standard_normal(mean.shape, dtype=np.float32)
    return np.tanh(mean)


def sac_player(actor, rng):
    """A player: the trained agent, exploring, or, without an rng, at its mean."""
    def choose(observation):
        action = act(actor, observation, rng)
        return action, action
    return choose


def make_player(config, env, rng, sampled=True):
    """A configuration's player: act(observation) -> (what it does, what is recorded), or None to stop."""
    name = config["player"]
    if name in tasks.TRAINED:
        return sac_player(load(ASSETS / f"{name}.npz")[0], rng if sampled else None)
    if name == "kitchen-complete":  # D4RL's: all four, always in this order
        return kitchen_player(env, rng, tuple(KITCHEN_GOALS))
    if name == "kitchen-partial":   # after one of D4RL's plans
        plan = KITCHEN_PLANS[rng.integers(len(KITCHEN_PLANS))]
        return kitchen_player(env, rng, tuple(task for task in KITCHEN_GOALS if task[0] in plan))
    return {"breakout": breakout_player, "pong": pong_player, "qbert": qbert_player}[name](env, rng)


def play(env, player, observation):
    """One episode from its first observation: lists of observations (of stacked frames, the newest alone),
    recorded actions, rewards and terminals, and what came last."""
    steps, over = [], False
    while not over and (choice := player(observation)) is not None:
        action, label = choice
        seen = observation[-1].copy() if observation.ndim == 3 else observation
        observation, reward, terminated, truncated, _ = env.step(action)
        steps.append((seen, label, reward, terminated))
        over = terminated or truncated
    return *map(list, zip(*steps, strict=True)), observation[-1] if observation.ndim == 3 else observation


def player_env(config):
    """The environment a player plays in: Atari's players, as DQN replay's, with sticky actions."""
    return make_env(config | {"env": config.get("player_env", config["env"]),
                              "horizon": config.get("player_horizon", config["horizon"])})


def play_episode(config, index):
    """Episode `index` of a task's full dataset, which its number alone determines.

    Where a task keeps better episodes only (minimum_return), worse ones are played again.
    Returns arrays: observations (T, S), or single frames (T, 84, 84); actions (T, A) or (T,); rewards
    (T,); terminals (T,); and the observation that followed.
    """
    env = player_env(config)
    for attempt in itertools.count(1):
        # a seed of its own for each attempt, far from all episodes' first attempts
        observation, _ = env.reset(seed=index + 100_000 * (attempt - 1))
        episode = play(env, make_player(config, env, np.random.default_rng([index, attempt])), observation)
        if sum(episode[2]) >= config.get("minimum_return", -np.inf):
            break
    env.close()
    return tuple(np.array(column) for column in episode)


def measure(task, episodes):
    """Print a player's mean return; of a trained one with sampled actions and with their means."""
    from prepare_data import reference

    config = tasks.configuration(f"mini/{task}-1/dt/seed0")
    low, high = reference(config)
    env = player_env(config)
    for sampled in (True, False) if config["player"] in tasks.TRAINED else (True,):
        returns, lengths = [], []
        for i in range(episodes):
            observation, _ = env.reset(seed=20_000_000 + i)
            player = make_player(config, env, np.random.default_rng([20_000_000 + i, 1]), sampled)
            rewards = play(env, player, observation)[2]
            returns.append(sum(rewards))
            lengths.append(len(rewards))
        mean, std = np.mean(returns), np.std(returns, ddof=1)
        print(f"{task}{'' if sampled else ', actions at their mean'}: return {mean:.4g} (standard deviation "
              f"{std:.3g}, {min(returns):.4g} to {max(returns):.4g}, {episodes} episodes of "
              f"{np.mean(lengths):.0f} steps), normalised {100 * (mean - low) / (high - low):.1f}")


# --- the kitchen: way-points and differential inverse kinematics -------------------------------
# Its constants were measured on gymnasium-robotics 1.4.2 with mujoco 3.6.0, in the environment that
# envs.make_env builds. Metres, radians, seconds; the kitchen is towards +y of the robot, +z is up.

STEP = 0.08  # seconds of an environment step
TURN = 2 * STEP  # an action of 1 sets a joint's target 0.16 rad from where the joint was observed ...
LAG = np.array([0.501] * 4 + [0.617] * 3)  # ... and the servo covers this share of it within the step
LOW = np.array([-2.85, -1.72, -2.85, -3.03, -2.85, 0.03, -2.85])  # just inside of the joints' limits
HIGH = np.array([2.85, 1.72, 2.85, -0.43, 2.85, 2.07, 2.85])
HOME = np.array([0.148, -1.768, 1.844, -2.477, 0.260, 0.713, 1.595])  # the arm after a reset
OPEN, CLOSED = 1.0, -1.0  # actions of the fingers
# What 24 groups of the demonstrations behind D4RL's "partial" do of microwave, kettle, light switch and
# slide cabinet, always in this order: folders of relay-policy-learning's kitchen_demos_multitask, all of
# which D4RL's generator reads. topknob_bottomknob_hinge_slide, which does the last alone, is not among
# them. Theirs turn knobs and open the hinge cabinet besides; ours stop short.
KITCHEN_PLANS = ("ks kls kls ks kls ms mls mk mks mks mkls mk "
                 "mkl m ms ls kl k kl mls mkl mls ml ml").split()
NOISE = 0.1  # standard deviation of what is added to the arm's actions
# Frames of the hand, (3, 3) with its axes as columns: y is the fingers' opening, z where they point.
AHEAD = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
DOOR = np.array([[0, 0.955, -0.295], [0, 0.295, 0.955], [1, 0, 0]])  # the microwave stands askew
HINGE, HANDLE = np.array([-1.128, 0.455, 1.792]), np.array([-0.642, 0.493, 1.792])  # its door, shut

# A sub-task starts from these joint angles; without them the posture drifts from one to the next.
POSES = {
    "microwave": (-0.946, -1.700, 1.948, -1.690, -0.849, 1.257, 2.715),
    "kettle": (0.314, -1.680, 2.517, -2.427, 0.466, 0.743, 2.201),
    "light switch": (-0.735, -1.283, 1.268, -2.732, 0.083, 1.971, 1.029),
    "slide cabinet": (-0.565, -0.890, 0.764, -2.253, -0.081, 1.492, 0.602),
}
PATHS = {  # then the hand visits points: x, y, z and their jitter; steps at most, tolerance, speed
    "microwave": [(-0.609, 0.388, 1.792, 0.010, 25, 0.03, 0.8),
                  (-0.638, 0.481, 1.792, 0.005, 16, 0.02, 0.6)],
    "kettle": [],
    "light switch": [(-0.270, 0.450, 2.280, 0.010, 20, 0.05, 0.9),
                     (-0.280, 0.600, 2.280, 0.005, 16, 0.02, 0.9),
                     (-0.500, 0.600, 2.280, 0.005, 16, 0.02, 0.5)],
    "slide cabinet": [(-0.260, 0.450, 2.560, 0.010, 25, 0.05, 0.9),
                      (-0.200, 0.585, 2.580, 0.005, 16, 0.02, 0.9),
                      (0.280, 0.585, 2.580, 0.005, 45, 0.03, 0.7)],
}


def kitchen_player(env, rng, order):
    """A demonstrator of one episode: the sub-tasks `order`, names of KITCHEN_GOALS, one after another.

    Returns act(observation (60,)) -> (executed action, label), both (9,) float32 in [-1, 1], or None
    when all of `order` is done. The label is the script's action and the executed one adds noise, so
    the demonstrations show how to come back from small errors. Only the noisy observation is used
    (`env` lends its model). A sub-task is tried until it is done; the horizon ends hopeless episodes.
    """
    arm = Arm(env.unwrapped.model)
    script = demonstration(arm, rng, order)

    def act(observation):
        arm.look(observation)
        if all(arm.done(task) for task in order):
            return None
        label = next(script)
        executed = label + np.append(rng.normal(0, NOISE, 7), (0, 0))
        return np.clip(executed, -1, 1).astype(np.float32), label.astype(np.float32)

    return act


def demonstration(arm, rng, order):
    """Yields actions (9,); between two of them the arm looks at the new observation."""
    for task in order:
        fingers = OPEN if task == "microwave" else CLOSED
        yield from arm.bend(POSES[task], fingers)
        while not arm.done(task):
            for action in attempt(arm, rng, task, fingers):
                yield action
                if arm.done(task):
                    break
        # straight back, or the arm would catch on things on its way to the next pose
        yield from arm.reach(arm.hand - (0, 0.15, 0), None, fingers, 12, 0.03, 0.8)


def attempt(arm, rng, task, fingers):
    """Yields the actions of one try at a sub-task."""
    for *point, jitter, steps, tolerance, speed in PATHS[task]:
        target = point + rng.uniform(-jitter, jitter, 3)
        frame = DOOR if task == "microwave" else AHEAD
        yield from arm.reach(target, frame, fingers, steps, tolerance, speed)

    if task == "microwave":  # take the handle, an upright bar, and pull it around the hinge
        for _ in range(5):
            yield arm.command(np.zeros(7), CLOSED)
        for _ in range(30):
            cos, sin = np.cos(arm.door - 0.2), np.sin(arm.door - 0.2)  # a little ahead of the door
            x, y, z = HANDLE - HINGE
            yield arm.toward(HINGE + (cos * x - sin * y, sin * x + cos * y, z), DOOR, CLOSED, 0.6)

    if task == "kettle":  # push it with the fist, low, a little left of its middle or it would spin
        left, height = rng.uniform((0.010, 1.715), (0.020, 1.725))
        for _ in range(70):
            x = arm.kettle[0]
            steer = np.clip(0.3 * (x + 0.23), -0.03, 0.03)  # more, and the hand slides off its side
            yield arm.toward((x - left + steer, arm.hand[1] + 0.1, height), AHEAD, CLOSED, 0.5)


class Arm:
    """The robot as last observed, and the actions that move it."""

    def __init__(self, model):
        self.model, self.data = model, mujoco.MjData(model)
        self.site = model.site("end_effector").id
        self.stiffness = model.actuator_gainprm[:7, 0]
        self.sightings = np.zeros(len(KITCHEN_GOALS), int)

    def look(self, observation):
        self.data.qpos[:] = observation[:30]  # the observation has no velocities; qvel stays 0
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        self.joints, self.door, self.kettle = observation[:7], observation[22], observation[23:26]
        self.hand = self.data.site_xpos[self.site].copy()
        self.frame = self.data.site_xmat[self.site].reshape(3, 3).copy()
        self.sightings += kitchen_done(observation)

    def done(self, task):  # the environment judges without noise, which may flatter one sighting
        return self.sightings[list(KITCHEN_GOALS).index(task)] >= 3

    def command(self, change, fingers):
        """The action (9,) that turns the joints by `change` (7,) despite their lag and their weight."""
        weight = np.zeros(self.model.nv)
        mujoco.mj_rne(self.model, self.data, 0, weight)
        arm = (change / LAG + weight[:7] / self.stiffness) / TURN
        return np.append(arm / max(1, np.abs(arm).max()), (fingers, fingers))

    def bend(self, pose, fingers):
        """Yields actions until the joints are near a pose (7,), 40 at most."""
        for _ in range(40):
            if np.abs(pose - self.joints).max() < 0.15:
                return
            yield self.command(0.6 * (pose - self.joints), fingers)

    def reach(self, target, frame, fingers, steps, tolerance, speed):
        """Yields actions until the hand is within `tolerance` of a point (3,), `steps` at most."""
        for _ in range(steps):
            if np.linalg.norm(target - self.hand) < tolerance:
                return
            yield self.toward(target, frame, fingers, speed)

    def toward(self, target, frame, fingers, speed):
        """The action (9,) that moves the hand towards a point (3,) and a frame (3, 3), None for any."""
        position, rotation = np.zeros((2, 3, self.model.nv))
        mujoco.mj_jacSite(self.model, self.data, position, rotation, self.site)
        goal, jacobian = shorten(0.6 * (target - self.hand), speed * STEP), position[:, :7]
        if frame is not None:
            turn = np.cross(self.frame, frame, axis=0).sum(1) / 2  # axis times sine of the angle
            goal = np.append(goal, 0.3 * shorten(0.4 * turn, 1.5 * STEP))
            jacobian = np.vstack([jacobian, 0.3 * rotation[:, :7]])
        free = np.ones(7)
        for _ in range(3):  # damped least squares, anew without the joints that would pass their limits:
            # with those merely clipped, the other joints' share alone leads the hand astray
            j = jacobian * free
            inverse = j.T @ np.linalg.inv(j @ j.T + 0.03**2 * np.eye(len(j)))
            home = 0.05 * (HOME - self.joints) * free  # only where the goal leaves a choice
            change = inverse @ goal + home - inverse @ (j @ home)
            beyond = self.joints + change
            free[((beyond < LOW) & (change < 0)) | ((beyond > HIGH) & (change > 0))] = 0
        return self.command(change * free, fingers)


def shorten(vector, length):
    return vector * min(1, length / max(np.linalg.norm(vector), 1e-9))


# --- Atari: scripts that read the emulator's memory and look past the picture ------------------
# How imperfect a player is gets drawn when it is made, once an episode, so that a dataset holds weak and
# strong episodes, as a replay buffer does. The addresses are those annotated in
# mila-iqia/atari-representation-learning, or were found by comparing the memory with the picture. A read
# shows the state after the last of an action's four frames.

def read_ram(env, table):
    """The bytes that a table names, as ints: an address gives a number, a list of them an array."""
    ram = env.unwrapped.ale.getRAM().astype(int)  # differences of the emulator's uint8 would wrap
    return SimpleNamespace(**{name: ram[where] for name, where in table.items()})


# Breakout: 0 NOOP, 1 FIRE, 2 RIGHT, 3 LEFT

BREAKOUT_RAM = {
    "paddle": 72,  # x, 55 at the left wall to 191 at the right one
    "ball_x": 99,  # 9 more than `paddle` when the ball is above the paddle's middle
    "ball_y": 101,  # grows downwards; 0 when there is no ball, and FIRE serves one
}


def breakout_player(env, rng):
    """act(observation) -> (action, action): follows the ball, with a share of random actions."""
    eps = rng.uniform(0, 0.2)

    def choose():
        ram = read_ram(env, BREAKOUT_RAM)
        if rng.random() < eps:
            return int(rng.integers(4))
        if ram.ball_y == 0:
            return 1
        offset = ram.ball_x - 9 - ram.paddle
        if abs(offset) > 8:  # one push moves 22 pixels, so a smaller tolerance would swing to and fro
            return 2 if offset > 0 else 3
        # FIRE does nothing now; it spreads the actions, of which more than half would be NOOP
        return int(rng.integers(2))

    def act(observation):
        action = choose()
        return action, action

    return act


# Pong: 0 NOOP, 1 FIRE, 2 RIGHT (up), 3 LEFT (down), 4 RIGHTFIRE, 5 LEFTFIRE

PONG_RAM = {
    "paddle": 51,  # y, 38 at the top to 203; 6 less than `ball_y` when its middle meets the ball
    "halfway": 60,  # the paddle glides to a rest as far beyond this as it now is short of it
    "ball_x": 49,  # grows towards the player
    "ball_y": 54,  # grows downwards; 0 when there is no ball, and the next one serves itself
}
PONG_PUSHES = {0: (0, 1), -1: (2, 4), 1: (3, 5)}  # direction -> its action without and with FIRE
PONG_GLIDE = (0, 6, 19, 22, 23)  # how far a push has moved the paddle after so many steps
PONG_CONTACT = 189  # the ball's x when it meets the player's paddle
PONG_TOP, PONG_BOTTOM = 45.5, 205.5  # the ball's y at the walls
PONG_MIDDLE = 125


def pong_player(env, rng):
    """act(observation) -> (action, action): plans where to meet the ball and how to return it.

    FIRE held at contact makes the ball faster, so games become shorter and the player errs more often.
    The share of contacts at which it holds FIRE is what makes it medium.
    """
    fire_share, eps = rng.uniform(0.5, 1), rng.uniform(0, 0.02)
    last, coming, fires, speed_y = read_ram(env, PONG_RAM), False, False, 0

    def act(observation):
        nonlocal last, coming, fires, speed_y
        ram, before, came = read_ram(env, PONG_RAM), last, coming
        in_play, speed_x = ram.ball_y > 0 and before.ball_y > 0, ram.ball_x - before.ball_x
        last, coming = ram, in_play and speed_x > 0
        if in_play and all(PONG_TOP + 8 < y < PONG_BOTTOM - 8 for y in (before.ball_y, ram.ball_y)):
            speed_y = ram.ball_y - before.ball_y
        elif not PONG_TOP < before.ball_y + speed_y < PONG_BOTTOM:
            speed_y = -speed_y  # it bounced between the two reads, and their difference says nothing
        if coming and not came:
            fires = rng.random() < fire_share
        if rng.random() < eps:
            action = int(rng.integers(6))
        else:
            rest = 2 * ram.halfway - ram.paddle
            push = pong_push(ram, rest, speed_x, speed_y) if coming else pong_towards(PONG_MIDDLE, rest)
            action = PONG_PUSHES[push][int(coming and fires and ram.ball_x >= 176)]
        return action, action

    return act


def pong_push(ram, rest, speed_x, speed_y):
    """The direction (-1 up, 0 none, 1 down) in which to push the paddle while the ball comes."""
    steps = (PONG_CONTACT - ram.ball_x) / speed_x
    if steps <= 0:
        return 0
    span = PONG_BOTTOM - PONG_TOP
    meet = PONG_TOP + span - abs((ram.ball_y + speed_y * steps - PONG_TOP) % (2 * span) - span)
    # only steep returns, off the ends of the paddle, beat the opponent
    goal = meet - 6.5 + (6.5 if meet > PONG_MIDDLE else -6.5)
    if steps > 3.5:
        return pong_towards(goal, rest)
    # too late for the paddle to come to rest: compare where each sequence of pushes has brought it by then;
    # sticky actions blur every push, so of two equally good sequences the one with fewer is better
    drift = rest - (rest - ram.paddle) * 0.25 ** steps
    glide = [np.interp(steps - i, range(5), PONG_GLIDE) for i in range(min(3, math.ceil(steps)))]
    pushes = itertools.product((0, -1, 1), repeat=len(glide))
    return min(pushes, key=lambda push: abs(drift + np.dot(push, glide) - goal) + np.abs(push).sum())[0]


def pong_towards(goal, rest):
    """A push moves the paddle by 23 in the end, so one is worth it from half of that on."""
    return 0 if abs(goal - rest) <= 12 else 1 if goal > rest else -1


# Qbert: 0 NOOP, 1 FIRE, 2 UP, 3 RIGHT, 4 LEFT, 5 DOWN

QBERT_RAM = {
    "player_y": 67,  # 25 + 28 * row when the player stands on a cube
    "player_code": 35,  # its column code, see QBERT_CUBES
    # the 21 cubes, row by row
    "colours": [21, 52, 54, 83, 85, 87, 98, 100, 102, 104, 1, 3, 5, 7, 9, 32, 34, 36, 38, 40, 42],
    "sprites": [92, 93, 94, 95, 96],  # what is on rows 1..5, at most one thing a row
    "codes": [75, 76, 77, 78, 79],  # its column code
}
QBERT_BALL, QBERT_COILY = 17, (59, 81, 102)  # other sprites are harmless

# A cube is (row 0..5, column code 5 - row .. 5 + row): a hop changes both by one.
QBERT_CUBES = [(row, code) for row in range(6) for code in range(5 - row, 6 + row, 2)]
QBERT_HOPS = {2: (-1, 1), 3: (1, 1), 4: (-1, -1), 5: (1, -1)}
QBERT_WAYS = {  # cube -> {action: the cube it leads to}, without the hops off the pyramid
    (row, code): {action: (row + down, code + right) for action, (down, right) in QBERT_HOPS.items()
                  if (row + down, code + right) in QBERT_CUBES}
    for row, code in QBERT_CUBES}


def qbert_player(env, rng):
    """act(observation) -> (action, action): hops to the nearest cube not coloured yet, around enemies."""
    eps, start = rng.uniform(0.15, 0.43), 0

    def act(observation):
        nonlocal start
        ram = read_ram(env, QBERT_RAM)
        if (ram.colours == ram.colours[0]).all():
            start = ram.colours[0]  # a round begins
        here = ((ram.player_y - 25) / 28, ram.player_code)
        if here not in QBERT_CUBES or rng.random() < eps:
            # in the air (five steps of six) actions do nothing, so random ones spread them at no cost
            action = int(rng.integers(6))
        else:
            action = qbert_hop(here, ram, start, rng)
        return action, action

    return act


def qbert_hop(here, ram, start, rng):
    """The action that begins the cheapest way to a cube of the start's colour, or 0 to let enemies pass."""
    danger = set()
    for row, sprite, code in zip(range(1, 6), ram.sprites, ram.codes, strict=True):
        if sprite == QBERT_BALL or sprite in QBERT_COILY:
            hops = QBERT_HOPS.values() if sprite in QBERT_COILY else [(1, -1), (1, 1)]  # a ball only falls
            danger |= {(row, code)} | {(row + down, code + right) for down, right in hops}
    price = {cube: 51 if cube in danger else 1 for cube in QBERT_CUBES}
    goals = [cube for cube, colour in zip(QBERT_CUBES, ram.colours, strict=True) if colour == start]
    cost = dict.fromkeys(QBERT_CUBES, math.inf) | dict.fromkeys(goals or QBERT_CUBES, 0)
    for _ in range(10):  # no two cubes are more than ten hops apart
        for cube in QBERT_CUBES:
            cost[cube] = min(cost[cube], *(price[to] + cost[to] for to in QBERT_WAYS[cube].values()))
    ways = {action: price[to] + cost[to] for action, to in QBERT_WAYS[here].items()}
    best = min(ways.values())
    return 0 if best > 30 else int(rng.choice([action for action in ways if ways[action] == best]))


# --- training a player -------------------------------------------------------------------------

def actor_arrays(policy):
    """A stable-baselines3 SAC policy as plain arrays, named as D4RL names its own (fc0, fc1, ...)."""
    layers = {"fc0": policy.actor.latent_pi[0], "fc1": policy.actor.latent_pi[2],
              "mean": policy.actor.mu, "log_std": policy.actor.log_std}
    return {f"{name}/{part}": getattr(layer, part).detach().numpy().copy()
            for name, layer in layers.items() for part in ("weight", "bias")}


def train(task, steps, every, episodes, fraction, seed):
    """Train SAC and keep the first actor whose stochastic return reaches `fraction` of the expert's.

    The expert is the reference of the normalised score. "Reaches" is judged on `episodes` episodes that no
    training step saw, so one lucky episode does not stop the run.
    """
    from prepare_data import reference

    row = tasks.configuration(f"mini/{task}-1/dt/seed0")
    player = row["player"]
    if player not in tasks.TRAINED:
        sys.exit(f"players: {task} is played by a script; there is nothing to train, only to --measure")
    try:
        import torch
        from stable_baselines3 import SAC
        from stable_baselines3.common.callbacks import BaseCallback
    except ImportError:
        sys.exit("players: training needs stable-baselines3: pip install -r requirements-players.txt")

    torch.set_num_threads(1)
    goal = fraction * reference(row)[1]
    folder = Path("build/players") / player
    folder.mkdir(parents=True, exist_ok=True)
    probe = make_env(row)
    rows = []

    class Measure(BaseCallback):
        reached = False

        def _on_step(self):
            if self.num_timesteps % every:
                return True
            arrays = actor_arrays(self.model.policy)
            played = []
            for i in range(10_000_000, 10_000_000 + episodes):
                first, _ = probe.reset(seed=i)
                played.append(play(probe, sac_player(arrays, np.random.default_rng(i)), first)[2])
            returns, lengths = [sum(rewards) for rewards in played], [len(rewards) for rewards in played]
            rows.append({"step": self.num_timesteps, "return_mean": round(float(np.mean(returns)), 1),
                         "return_std": round(float(np.std(returns, ddof=1)), 1),
                         "length_mean": round(float(np.mean(lengths)), 1), "episodes": episodes})
            print(player, rows[-1], flush=True)
            provenance = {"algorithm": "SAC (stable-baselines3)", "env": row["env"],
                          "seed": seed, "goal": goal, "hidden": [256, 256]} | rows[-1]
            # numpy appends .npz to a name without it, and a rename makes the file appear whole
            np.savez(folder / "part.npz", provenance=np.array(json.dumps(provenance)), **arrays)
            os.replace(folder / "part.npz", folder / f"{self.num_timesteps}.npz")
            with open(folder / "curve.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, rows[0], lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            self.reached = rows[-1]["return_mean"] >= goal
            return not self.reached

    measured = Measure()
    agent = SAC("MlpPolicy", make_env(row), seed=seed, learning_starts=10_000,
                policy_kwargs={"net_arch": [256, 256]}, verbose=0)
    agent.learn(steps, callback=measured)
    if not measured.reached:
        sys.exit(f"players: after {steps:,} steps no actor had reached {goal:.0f}; "
                 f"the curve is in {folder}/curve.csv; try more --steps or another --seed")
    ASSETS.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / f"{rows[-1]['step']}.npz", ASSETS / f"{player}.npz")
    shutil.copy(folder / "curve.csv", ASSETS / f"{player}.csv")
    print(f"{ASSETS / player}.npz: mean return {rows[-1]['return_mean']} at step {rows[-1]['step']}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(tasks.TASKS))
    parser.add_argument("--steps", type=int, default=1_000_000, help="give up after so many")
    parser.add_argument("--every", type=int, default=10_000, help="steps between measurements")
    parser.add_argument("--episodes", type=int, default=20, help="episodes of a measurement")
    parser.add_argument("--fraction", type=float, default=1 / 3, help="of the expert's return to reach")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", action="store_true", help="play the shipped player instead")
    args = vars(parser.parse_args())
    if args.pop("measure"):
        measure(args["task"], args["episodes"])
    else:
        train(**args)
