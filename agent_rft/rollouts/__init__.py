"""The one rollout machine, and what drives it: training, prior check, evaluation and production all go through here."""
