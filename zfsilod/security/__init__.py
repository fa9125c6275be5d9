"""Identities, roles, the audit, certificates and join files."""
