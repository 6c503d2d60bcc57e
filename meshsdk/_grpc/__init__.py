"""What the sync and the aio gRPC adapter share; private to them."""
