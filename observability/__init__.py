"""The job-card store: training rollouts and production runs as records that a reviewer can read back."""
