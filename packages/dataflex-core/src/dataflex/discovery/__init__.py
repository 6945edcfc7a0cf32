"""Finding components: what is installed or registered, what its text says of it, and how it is made."""
