"""How a trained network acts: as an agent of one episode, or of many in lock-step.

    policy = Policy(model, config)          # or evaluate.load_policy(run)
    policy.reset(3600.0)
    action = policy.act(observation)        # later: policy.act(observation, reward)

Letters: n episodes side by side, K context, S state, A action, H hidden.
"""

import numpy as np
import torch


class Policy:
    """A trained network as an agent of n episodes side by side; of one, if it is given single values.

    A sequence model sees the last K steps of each, (return-to-go, state, action), read anew at every step.
    A cache of keys and values would not be exact: what they held depends on tokens that left the window.
    """

    def __init__(self, model, config, device="cpu"):
        self.model, self.config, self.device = model.to(device).eval(), config, torch.device(device)
        self.mean, self.std = np.float32(config["state_mean"]), np.float32(config["state_std"])
        self.sequence = config["kind"] == "sequence"
        self.reset()

    def reset(self, target_returns=None):
        """Start n episodes, each to reach its own of n target returns in the environment's units; a number
        for one episode; None for the largest that the task names, and for baselines, which know none."""
        if target_returns is None:
            target_returns = max(self.config.get("target_returns", (0.0,)))
        self.t, self.remaining = 0, np.array(target_returns, float, ndmin=1)
        if self.sequence:
            n, hidden = len(self.remaining), self.model.embed_ln.normalized_shape[0]
            self.unknown = (torch.zeros((), dtype=torch.long) if self.config["discrete"] else
                            torch.zeros(self.config["action_dim"])).to(self.device)
            self.steps = {"states": torch.zeros(n, 0, hidden, device=self.device),  # embedded once
                          "returns_to_go": torch.zeros(n, 0, 1, device=self.device),
                          "actions": self.unknown.expand(n, 0, *self.unknown.shape)}

    @torch.inference_mode()
    def act(self, observations, rewards=None):
        """What to do: (n, A) in [-1, 1], or (n,) buttons; FloatingPointError if the network has diverged.

        observations    (n, S) as the environment gives them, or stacked frames (n, 4, 84, 84)
        rewards         (n,) what the last actions earned; None at the first step
        """
        states = np.asarray(observations)
        single = states.ndim == (3 if self.config["pixels"] else 1)
        states = states[None] if single else states
        if not self.config["pixels"]:
            states = (states.astype(np.float32) - self.mean) / self.std
        states = torch.from_numpy(states).to(self.device)
        predicted = self.predict(states, rewards) if self.sequence else self.model(states)    # (n, A)
        if not torch.isfinite(predicted).all():
            raise FloatingPointError("the network's action is no number")
        chosen = predicted.argmax(1) if self.config["discrete"] else predicted
        if self.sequence:
            self.steps["actions"][:, -1] = chosen  # as the model said it
        # D4RL's environments clip what they execute
        executed = chosen.cpu().numpy() if self.config["discrete"] else chosen.cpu().numpy().clip(-1, 1)
        return executed[0] if single else executed

    def predict(self, states, rewards):
        """Actions (n, A) for normalised states (n, S) at the next step of the environments."""
        config, K, n = self.config, self.config["context"], len(states)
        if rewards is not None:
            self.remaining = self.remaining - counted(rewards, config)
        to_go = (self.remaining / config["return_scale"]).astype(np.float32)[:, None, None]
        newest = {"states": self.model.embed_state(states[:, None]),
                  "returns_to_go": torch.from_numpy(to_go).to(self.device),
                  "actions": self.unknown.expand(n, 1, *self.unknown.shape)}  # not known yet, and not read
        self.steps = {name: torch.cat([self.steps[name], newest[name]], 1)[:, -K:] for name in newest}
        self.t += 1
        timesteps = torch.arange(max(0, self.t - K), self.t, device=self.device).repeat(n, 1)
        return self.model.predict(**self.steps, timesteps=timesteps, newest=True)[:, 0]

    def keep(self, going):
        """Go on with those of the n episodes for which `going` (n,) is true."""
        self.remaining = self.remaining[going]
        if self.sequence and not going.all():
            keep = torch.from_numpy(going).to(self.device)
            self.steps = {name: values[keep] for name, values in self.steps.items()}


def counted(rewards, config):
    """Rewards as the return still to come counts them: Atari's by their sign."""
    return np.sign(rewards) if config["clip_rewards"] and not config["released"] else rewards
