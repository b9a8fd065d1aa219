"""Frozen teachers: architectures, the library on disk, the service that answers with logits, and its clients."""
