"""What is wrong with a configuration, in one line."""


class ConfigError(ValueError):
    """One clear line for the user: which key, what was expected, what came, what to do."""
