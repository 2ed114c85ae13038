"""The refresh job: plan, generate shard by shard, commit, publish."""
