"""The documented import paths of the trainers and of the base classes of components; re-exports only."""
