"""A shop's own product feed and click log, in the formats that shops export, as input tables."""
