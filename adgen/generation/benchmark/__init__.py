"""How fast the engine is: against its floor, against the published loop, against transformers. Knows no Ray."""
