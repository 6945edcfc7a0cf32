"""What a component of each kind is: the base classes that third parties inherit from."""
