"""What is wrong with a configuration, a line for each mistake."""

from files.errors import one_line


class ConfigError(ValueError):
    """One clear line for the user: which key, what was expected, what came, what to do.

    Who checks several things and names all that are wrong gives a line for each.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)

    def __str__(self) -> str:
        return "\n".join(self.args)


def lines_of(error: BaseException) -> list[str]:
    """Returns the message of the error in one line, or in a line for each mistake if it names several."""
    several = isinstance(error, ConfigError) and len(error.args) > 1
    return [one_line(ConfigError(line)) for line in error.args] if several else [one_line(error)]
