"""How fast the engine is: against its roofline, against the published loop, against transformers. Knows no Ray."""
