"""Orchestration: DVC decides what is stale, these decide where and when it runs. Nothing in `src/` imports it."""
