"""The store: records in LMDB, their views, and sealed secrets. The only package that imports lmdb."""
