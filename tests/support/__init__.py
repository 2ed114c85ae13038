"""What several tests use: small shops, models, jobs and runs. No test imports another test."""
