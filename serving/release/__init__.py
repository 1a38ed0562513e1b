"""Release control: where sessions go, who decides it, who is told."""
