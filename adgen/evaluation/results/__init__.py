"""The folder of an evaluation: rows, summaries, comparisons."""
