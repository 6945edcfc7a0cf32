"""Adapters to the frameworks that dataflex rides on."""
