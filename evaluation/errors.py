"""The error of evaluations."""


class EvaluationError(ValueError):
    """Raised if a model cannot be evaluated on what was given; one clear line."""
