"""Steps, plans, and the worker's two loops."""
