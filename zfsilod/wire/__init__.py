"""Translation between protobuf messages and records, and channels to daemons."""
