"""Prepares a Debian machine for the tests: Python environment, system packages, lab images."""
