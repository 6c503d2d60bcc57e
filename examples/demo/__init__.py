"""The demo: Bookinfo on the mesh, played step by step and checked. `python -m examples.demo`."""
