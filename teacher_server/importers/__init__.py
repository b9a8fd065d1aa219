"""Weights of other programs, and of this one, into the teacher library. Serving never imports this package."""
