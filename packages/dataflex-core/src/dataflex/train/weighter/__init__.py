"""The interface of a weighter."""
