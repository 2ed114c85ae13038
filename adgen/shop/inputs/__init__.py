"""The input tables, and the formats that become them."""
