"""Who plays Atari: scripts that read the emulator's memory and look past the picture.

Each `*_player(env, rng)` returns act(observation) -> (action, action): what is done is what is recorded.
How imperfect a player is gets drawn when it is made, once an episode, so that a dataset holds weak and
strong episodes, as a replay buffer does. The addresses are those annotated in
mila-iqia/atari-representation-learning, or were found by comparing the memory with the picture. A read
shows the state after the last of an action's four frames. `mini.players` runs the scripts.
"""

import math
from types import SimpleNamespace

import numpy as np


def read_ram(env, table):
    """The bytes that a table names, as ints: an address gives a number, a list of them an array."""
    ram = env.unwrapped.ale.getRAM().astype(int)  # differences of the emulator's uint8 would wrap
    return SimpleNamespace(**{name: ram[where] for name, where in table.items()})


# --- Breakout: 0 NOOP, 1 FIRE, 2 RIGHT, 3 LEFT -------------------------------------------------

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


# --- Pong: 0 NOOP, 1 FIRE, 2 RIGHT (up), 3 LEFT (down), 4 RIGHTFIRE, 5 LEFTFIRE ----------------

PONG_RAM = {
    "paddle": 51,  # y, 38 at the top to 203; 7.5 less than `ball_y` when its middle meets the ball
    "ball_y": 54,  # grows downwards; 0 when there is no ball, and the next one serves itself
}
PONG_PUSHES = {0: 0, -1: 2, 1: 3}  # direction -> its action; FIRE would make the ball too fast to follow
PONG_MIDDLE = 125
PONG_OFF = 5  # how far the paddle's middle keeps ahead of the ball's: it meets the ball off its middle


def pong_player(env, rng):
    """act(observation) -> (what it does, what it meant): keeps level with the ball, one step ahead.

    It goes by positions that four frames show, the paddle's speed included: what the memory says of where the
    paddle is going to is not drawn yet in every second game, those that begin at an odd frame. It does the
    same wherever the ball flies: one that waits in the middle teaches that a paddle at rest waits. Random
    actions, held for some steps and not recorded, move the paddle about: how the player comes back from
    wherever a learner's own errors bring it is in the data. How many there are is drawn once a game, and
    decides who wins it.
    """
    eps, last, held = rng.uniform(0, 0.1), read_ram(env, PONG_RAM), []

    def act(observation):
        nonlocal last
        ram, before = read_ram(env, PONG_RAM), last
        last, fall = ram, ram.ball_y - before.ball_y
        played = ram.ball_y > 0 and before.ball_y > 0
        goal = ram.ball_y + fall + PONG_OFF * np.sign(fall) - 7.5 if played else PONG_MIDDLE
        ahead = goal - (2 * ram.paddle - before.paddle)  # of where the paddle glides to
        action = PONG_PUSHES[int(np.sign(ahead)) if abs(ahead) > 11 else 0]  # one moves it by 23
        if not held and rng.random() < eps:
            held.extend([int(rng.choice((0, 2, 3)))] * int(rng.integers(2, 13)))
        return (held.pop() if held else action), action

    return act


# --- Qbert: 0 NOOP, 1 FIRE, 2 UP, 3 RIGHT, 4 LEFT, 5 DOWN --------------------------------------

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
    """act(observation) -> (what it does, what it meant): hops to the nearest cube not coloured yet, around
    enemies. Random actions, which are not recorded, disturb it.

    Five steps of six it is in the air, where actions do nothing. There it means the hop that it will make
    from the cube it comes down on, so that nearly every step shows a decision.
    """
    eps, start, stood, hop = rng.uniform(0.1, 0.4), 0, None, 0

    def act(observation):
        nonlocal start, stood, hop
        ram = read_ram(env, QBERT_RAM)
        if (ram.colours == ram.colours[0]).all():
            start = ram.colours[0]  # a round begins
        cube = ((ram.player_y - 25) / 28, ram.player_code)
        stands = cube in QBERT_CUBES
        if not stands and stood:  # in the air: its column is that of where it comes down
            ways = {action: to for action, to in QBERT_WAYS[stood].items() if to[1] == ram.player_code}
            cube = ways.get(hop) or next(iter(ways.values()), None)
        action = qbert_hop(cube, ram, start) if cube in QBERT_CUBES else 0
        done = int(rng.integers(6)) if stands and rng.random() < eps else action
        if stands:
            stood, hop = cube, done
        return done, action

    return act


def qbert_hop(here, ram, start):
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
    return 0 if best > 30 else next(action for action in ways if ways[action] == best)
