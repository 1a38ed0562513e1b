"""Tool servers: what the model's calls reach, in training and in production alike."""
