"""What a run has to do: pairs, their histories, and what has changed since the last run."""
