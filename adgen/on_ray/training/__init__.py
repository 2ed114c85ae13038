"""The training job: Ray Train workers, their batches, checkpoints and resume."""
