"""Options between a configuration and the classes that take them."""
