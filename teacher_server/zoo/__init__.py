"""Architectures and heads: used frozen by the teachers, trained by the students. Imports nothing by itself."""
