"""The gRPC interface of ratings and the code generated from it."""
