"""The loop: encode, index, mine, fit, evaluate, round after round, on one machine or a Ray cluster."""
