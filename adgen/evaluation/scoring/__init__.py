"""All scores of one creative, and what they need."""
