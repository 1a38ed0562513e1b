"""Train, serve and audit tool-using agents by reinforcement fine-tuning. Importing this loads no torch."""

__version__ = "0.1.0"
