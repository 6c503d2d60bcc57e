"""Programs that know nothing of the mesh, for `python -m meshsdk run`, and one that does."""
