"""Frozen networks that answer: no Ray, no HTTP."""
