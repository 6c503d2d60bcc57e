"""Pure translation of (World, Node) into xDS resources, by name."""
