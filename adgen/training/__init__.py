"""Learning: batches, losses, the step. What a stage learns is a `Task`; how its numbers move is a `Step`. No Ray here."""
