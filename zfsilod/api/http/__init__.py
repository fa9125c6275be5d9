"""The HTTP/JSON front end: the methods of gRPC under /v1, as the annotations of the proto say."""
