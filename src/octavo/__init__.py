"""Octavo, an LLM serving engine. Its parts are the folders services/, kernels/ and shared/ of the root."""

__version__ = "0.1.0"
