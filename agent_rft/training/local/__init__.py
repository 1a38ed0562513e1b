"""The embedded engine: one process, a CPU or one GPU, any Hugging Face causal language model."""
