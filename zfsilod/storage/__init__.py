"""The store: records in LMDB, their views, sealed secrets. Only this package imports lmdb."""
