"""The interface of a selector."""
