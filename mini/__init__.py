"""All that makes the mini profile, which downloads nothing: who plays its data, and its language models.

players        plays an episode of a task, by its number; loads and runs the trained agents
kitchen        the kitchen's player: a script that moves the arm along way-points
atari          Breakout's, Pong's and Qbert's: scripts that read the emulator's memory
train_player   trains the agents that play MuJoCo and Reacher2d, and measures any player
pretrain       pre-trains the small GPT-2 and its three controls, measures and samples them
corpus         collects the English prose they are pre-trained on
calibrate      chooses the settings, by the loss on held-out episodes; calibration.csv is what it found
readout        measures what a language model passes on of a trajectory before it is trained
heldout.txt    the prose they are measured on
weights/       players/ the agents; lm/, lm-random/, lm-early/, lm-markov/ the models
README.md      what ships, how it was made, how good it is, and the licences of its text

A user of the kit needs players, kitchen, atari, weights/ and, beside SHA256SUMS, heldout.txt; train_player,
corpus and pretrain make weights/ again, calibrate and readout measure.
"""
