"""Fuzz tests: mutated messages, wrong D-Bus calls, and random texts for every parser."""
