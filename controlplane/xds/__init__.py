"""The xDS server: per-stream state, ordering and pushing, the gRPC service."""
