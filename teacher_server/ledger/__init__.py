"""Answers recorded and replayed."""
