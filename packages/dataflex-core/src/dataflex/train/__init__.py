"""The trainers, and the interfaces of selectors, mixers and weighters."""
