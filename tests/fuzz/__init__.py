"""Hostile input: mutated messages, wrong D-Bus calls, and texts for every parser."""
