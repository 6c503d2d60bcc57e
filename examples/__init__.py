"""Programs that show the mesh at work. Run them from the root of the checkout."""
