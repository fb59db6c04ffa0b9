"""The version of turbovaed."""

__version__ = "0.1.0"
