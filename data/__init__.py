"""Clips and views: the clip store, the view generator and the renderer. Knows nothing of teachers, Ray or HTTP."""
