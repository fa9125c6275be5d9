"""Never half done: every operation is cut at every point, and what is left is looked at."""
