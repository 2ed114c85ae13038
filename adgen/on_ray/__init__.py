"""The only room with Ray in it: pipelines, actors and what they need of a cluster."""
