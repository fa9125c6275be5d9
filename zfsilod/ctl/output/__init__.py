"""Output of zfsiloctl: tables, trees, blocks of text, progress and JSON."""
