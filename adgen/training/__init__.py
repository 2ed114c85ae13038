"""Learning: batches, losses, the step. What a stage learns is a `Task`; how weights are updated is a `Step`. No Ray here."""
