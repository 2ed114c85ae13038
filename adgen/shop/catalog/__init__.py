"""Products made ready for the model, once."""
