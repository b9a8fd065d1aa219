"""Asking teachers: over Serve, over HTTP, in this process; retries."""
