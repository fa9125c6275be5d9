"""The gRPC front end: one file per service."""
