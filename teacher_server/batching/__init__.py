"""Which questions share a forward pass, and who goes first. No Ray, no torch."""
