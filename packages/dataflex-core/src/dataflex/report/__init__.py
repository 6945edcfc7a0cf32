"""The page that shows what the data of a run did: read from what runs leave in their folders; no torch, no model."""
