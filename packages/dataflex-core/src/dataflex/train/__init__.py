"""The trainers, and the interfaces of the three kinds of component."""
