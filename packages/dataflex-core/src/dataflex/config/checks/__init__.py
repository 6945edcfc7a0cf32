"""The checks of a configuration, one idea per module. Each returns problems and never raises them."""
