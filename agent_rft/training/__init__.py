"""Reinforcement fine-tuning: what is the same for every engine, and the engines."""
