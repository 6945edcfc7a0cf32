"""Starting a run: in this process, or under torchrun with the environment variables of ``llamafactory-cli``."""
