"""An example of a dataflex plugin: one component of each kind, and a hook."""
