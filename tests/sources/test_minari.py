"""sources/minari.py: the kitchen's sets in their true layout, damaged, and what else is in that layout."""

from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from kit.envs import kitchen_observation
from kit.settings import configuration
from sources import d4rl

HOPPER, KITCHEN = (configuration(f"paper/{task}-1/dt/seed0")
                   for task in ("hopper-medium", "kitchen-complete"))
OPTIONS = SimpleNamespace(subset_seed=0, workers=1, timeout=5)


def minari_file(path, damage=None):
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    episodes = []
    with h5py.File(path, "w") as file:
        for number, T in enumerate((5, 12, 7)):
            seen = rng.normal(0, 0.01, (T + 1, 59))
            seen[:, 31] = np.linspace(0, -0.75, T + 1)  # the microwave opens slowly
            columns = {"observations/observation": seen, "actions": rng.uniform(-1, 1, (T, 9)),
                       "rewards": (seen[1:, 31] < -0.45).astype(float),
                       "terminations": np.arange(T) == T - 1, "truncations": np.zeros(T, bool)}
            if damage and number == 1:
                damage(columns)
            for name, column in columns.items():
                file[f"episode_{number}/{name}"] = column
            episodes.append(columns)
    return episodes


def hopper_file(path):
    """As Minari stores mujoco/hopper/medium-v0: observations are one array."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number in range(2):
            for name, shape in (("observations", (6, 11)), ("actions", (5, 3)), ("rewards", 5),
                                ("terminations", 5), ("truncations", 5)):
                file[f"episode_{number}/{name}"] = rng.normal(size=shape)
    return path


def test_minaris_kitchen_is_read_and_named_as_such(tmp_path):
    folder = tmp_path / "datasets/D4RL/kitchen/complete-v2"
    episodes = minari_file(folder / "data/main_data.hdf5")
    # the set itself, the folder of the kitchen's sets, or all of Minari's D4RL
    for where in (folder, folder.parent, folder.parent.parent):
        found = d4rl.load(KITCHEN, str(where), OPTIONS)
        assert found.name == "minari-complete-v2"
    data = found.arrays
    assert np.diff(data["offsets"]).tolist() == [5, 12, 7]
    seen = episodes[1]["observations/observation"]
    assert np.allclose(data["observations"][5:17], kitchen_observation(seen[:-1]))
    assert np.allclose(data["last_observations"][1], kitchen_observation(seen[-1]))
    assert np.array_equal(data["dataset_rewards"][5:17], episodes[1]["rewards"])
    assert data["rewards"][5:17].sum() == 1 == data["rewards"][5 + int(episodes[1]["rewards"].argmax())]


@pytest.mark.parametrize("damage, said", [
    (lambda c: c.update({"observations/observation": c["observations/observation"][:-1]}), "damaged"),
    (lambda c: c.update({"observations/observation": c["observations/observation"][:, :40]}), "another env"),
    (lambda c: c["actions"].__setitem__((2, 3), np.nan), "not finite"),
    (lambda c: c["actions"].__setitem__((2, 3), 1e300), "not finite"),
    (lambda c: c.update({name: column[:1 if "observation" in name else 0] for name, column in c.items()}),
     "episode_1 has no actions"),
    (lambda c: c.pop("rewards"), "damaged")])
def test_a_damaged_minari_file_ends_in_one_line(tmp_path, damage, said):
    minari_file(tmp_path / "main_data.hdf5", damage)
    with pytest.raises(SystemExit, match=said) as stop:
        d4rl.read(tmp_path / "main_data.hdf5", KITCHEN)
    assert "main_data.hdf5" in str(stop.value) and "\n" not in str(stop.value)


@pytest.mark.parametrize("config", [HOPPER, KITCHEN])
def test_minaris_hopper_is_named_as_what_it_is(tmp_path, config):
    path = hopper_file(tmp_path / "main_data.hdf5")
    with pytest.raises(SystemExit, match="Minari's layout, of which only the kitchen's") as stop:
        d4rl.load(config, str(path), OPTIONS)
    line = str(stop.value)
    assert "main_data.hdf5" in line and config["dataset"] in line
    assert "pickle" not in line and "\n" not in line


def test_minaris_kitchen_is_not_read_for_another_task(tmp_path):
    minari_file(tmp_path / "main_data.hdf5")
    with pytest.raises(SystemExit, match="Minari's layout") as stop:
        d4rl.load(HOPPER, str(tmp_path), OPTIONS)
    assert "pickle" not in str(stop.value)
