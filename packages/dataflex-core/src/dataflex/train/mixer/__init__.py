"""The interface of a mixer."""
