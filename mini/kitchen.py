"""Who plays the kitchen: a script that moves the arm along way-points by differential inverse kinematics.

Reads the observation and the environment's model, writes nothing; `mini.players` runs it.

Its constants were measured on gymnasium-robotics 1.4.2 with mujoco 3.6.0, in the environment that
kit.envs.make_env builds. Metres, radians, seconds; the kitchen is towards +y of the robot, +z is up.
"""

import mujoco
import numpy as np

from kit.envs import KITCHEN_GOALS, kitchen_done

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
NOISE = 0.2  # standard deviation of what is added to the arm's actions; with 0.4 none of ten does all four
# A sub-task is left when it is done beyond doubt: models stop earlier than what they imitate, and the
# environment counts nothing that is not within 0.3. Where in an observation, and how far at least.
ENOUGH = {"microwave": (22, -0.6), "kettle": (24, 0.58), "light switch": (17, -0.6),
          "slide cabinet": (19, 0.2)}
STUCK = 3  # steps in which the hand comes no nearer, pressed against something: then it goes on
# Frames of the hand, (3, 3) with its axes as columns: y is the fingers' opening, z where they point.
AHEAD = np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
DOOR = np.array([[0, 0.955, -0.295], [0, 0.295, 0.955], [1, 0, 0]])  # the microwave stands askew
HINGE, HANDLE = np.array([-1.128, 0.455, 1.792]), np.array([-0.642, 0.493, 1.792])  # its door, shut

# A sub-task starts from these joint angles; without them the posture drifts from one to the next.
POSES = {
    "microwave": (-0.946, -1.700, 1.948, -1.690, -0.849, 1.257, 2.715),
    "kettle": (0.314, -1.680, 2.517, -2.427, 0.466, 0.743, 2.201),
    "light switch": (-0.930, -1.101, 1.222, -2.592, -0.034, 2.021, 0.991),
    "slide cabinet": (-0.565, -0.890, 0.764, -2.253, -0.081, 1.492, 0.602),
}
PATHS = {  # then the hand visits points: x, y, z and their jitter; steps at most, tolerance, speed
    "microwave": [(-0.619, 0.410, 1.785, 0.010, 25, 0.03, 0.8),
                  (-0.648, 0.541, 1.785, 0.005, 16, 0.02, 0.6)],
    "kettle": [],
    "light switch": [(-0.250, 0.500, 2.310, 0.010, 25, 0.03, 0.5),
                     (-0.260, 0.660, 2.310, 0.005, 20, 0.02, 0.6),
                     (-0.550, 0.650, 2.310, 0.005, 20, 0.02, 0.6)],
    "slide cabinet": [(-0.260, 0.450, 2.490, 0.010, 30, 0.05, 0.7),
                      (-0.200, 0.665, 2.505, 0.005, 20, 0.02, 0.7),
                      (0.280, 0.665, 2.505, 0.005, 60, 0.03, 0.6)],
}


# --- the script --------------------------------------------------------------------------------

def complete_player(env, rng):
    """D4RL's "complete": all four sub-tasks, always in this order."""
    return kitchen_player(env, rng, tuple(KITCHEN_GOALS))


def partial_player(env, rng):
    """D4RL's "partial": what one of its plans does."""
    plan = KITCHEN_PLANS[rng.integers(len(KITCHEN_PLANS))]
    return kitchen_player(env, rng, tuple(task for task in KITCHEN_GOALS if task[0] in plan))


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
        fingers = OPEN if task in ("microwave", "kettle") else CLOSED
        yield from arm.bend(POSES[task], fingers)
        while not arm.done(task):
            for action in attempt(arm, rng, task, fingers):
                yield action
                if arm.done(task):
                    break
        # straight back, or the arm would catch on things on its way to the next pose
        yield from arm.reach(arm.hand - (0, 0.20, 0), None, CLOSED, 18, 0.03, 0.6)


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

    if task == "kettle":  # push it with both fingers, low and amid, or it would spin
        left, height = rng.uniform((-0.010, 1.715), (0.0, 1.725))
        for _ in range(70):
            x = arm.kettle[0]
            steer = np.clip(0.3 * (x + 0.23), -0.03, 0.03)  # more, and the hand slides off its side
            yield arm.toward((x - left + steer, arm.hand[1] + 0.1, height), AHEAD, fingers, 0.5)


# --- the arm -----------------------------------------------------------------------------------

class Arm:
    """The robot as last observed, and the actions that move it."""

    def __init__(self, model):
        self.model, self.data = model, mujoco.MjData(model)
        self.site = model.site("end_effector").id
        self.stiffness = model.actuator_gainprm[:7, 0]
        self.sightings = np.zeros(len(KITCHEN_GOALS), int)

    def look(self, observation):
        """Put the model where an observation (60,) shows it; count the sub-tasks it shows as done."""
        self.data.qpos[:] = observation[:30]  # the observation has no velocities; qvel stays 0
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        self.joints, self.door, self.kettle = observation[:7], observation[22], observation[23:26]
        self.hand = self.data.site_xpos[self.site].copy()
        self.frame = self.data.site_xmat[self.site].reshape(3, 3).copy()
        enough = [observation[index] / value > 1 for index, value in ENOUGH.values()]
        self.sightings += kitchen_done(observation) & np.array(enough)

    def done(self, task):  # the environment judges without noise, which may flatter one sighting
        return self.sightings[list(KITCHEN_GOALS).index(task)] >= 3

    def command(self, change, fingers):
        """The action (9,) that turns the joints by `change` (7,) despite their lag and their weight."""
        weight = np.zeros(self.model.nv)
        mujoco.mj_rne(self.model, self.data, 0, weight)
        arm = (change / LAG + weight[:7] / self.stiffness) / TURN
        return np.append(arm / max(1, np.abs(arm).max()), (fingers, fingers))

    def bend(self, pose, fingers):
        """Yields actions until the joints are near a pose (7,), 40 at most, none of them fast."""
        for _ in range(40):
            if np.abs(pose - self.joints).max() < 0.15:
                return
            yield self.command(np.clip(0.6 * (pose - self.joints), -0.055, 0.055), fingers)

    def reach(self, target, frame, fingers, steps, tolerance, speed):
        """Yields actions until the hand is within `tolerance` of a point (3,), or stuck, `steps` at most."""
        nearest, stuck = np.inf, 0
        for _ in range(steps):
            distance = np.linalg.norm(target - self.hand)
            stuck = 0 if distance < nearest - 0.003 else stuck + 1
            nearest = min(nearest, distance)
            if distance < tolerance or stuck == STUCK:
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
    """A vector, made no longer than `length`."""
    return vector * min(1, length / max(np.linalg.norm(vector), 1e-9))
