"""Runs at the start of every Python process below `python -m meshsdk run` (by PYTHONPATH).

Must work in any interpreter and never keep a program from starting.
"""

import os
import sys


def _chain(here: str) -> None:
    """Run the sitecustomize that stands behind this one, in its place."""
    import importlib.util
    from importlib.machinery import PathFinder

    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


def _attach(here: str) -> None:
    if os.environ.get("MESHSDK_ENABLED", "").strip().lower() in ("false", "0", "no", "off"):
        return
    try:
        import meshsdk.attach
    except ImportError:
        # A checkout, or an environment without the package: behind everything of the program.
        sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(here))))
        try:
            import meshsdk.attach
        except Exception as error:
            sys.stderr.write(f"meshsdk: {sys.executable} runs without the mesh: {error}\n")
            sys.path.pop()
            return
    meshsdk.attach.attach()


_here = os.path.dirname(os.path.abspath(__file__))
_attach(_here)
_chain(_here)
