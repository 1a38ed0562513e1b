"""What rollouts tell: whether there is something to learn, what training changed, and where to look."""
