"""The evaluation jobs: a published run, or a model on references."""
