"""The paper's experiments: which runs there are, running them, and the tables and pictures made of their results."""
