"""Identities, roles, audit, certificates and join files."""
