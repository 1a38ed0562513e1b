"""Graders: what turns a rollout into a reward, each a versioned artifact with a hash over all that decides its score."""
