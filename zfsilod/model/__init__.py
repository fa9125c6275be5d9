"""Records and values. Imports nothing else of zfsilod."""
