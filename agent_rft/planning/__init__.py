"""What a run needs in memory, time and money, worked out before a GPU minute is spent. Arithmetic alone, nothing is run."""
