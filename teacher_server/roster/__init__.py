"""Aliases, timelines and leases on disk. Needs neither Ray nor torch."""
