"""The versions that files and pages tell of, for a reader's eyes."""

from importlib import import_module


def versions() -> dict[str, str]:
    """Of this library and those that its figures come from; without "+cpu" and the like, so that equal things are equal
    bytes on every machine."""
    names = ("ppl_vae", "torch", "pyro", "numpy")
    return {name: str(import_module(name).__version__).partition("+")[0] for name in names}
