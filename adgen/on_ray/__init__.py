"""The only folder that imports Ray: pipelines, actors and what they need of a cluster."""
