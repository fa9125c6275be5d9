"""Records and values. Imports no other package of zfsilod."""
