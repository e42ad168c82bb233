"""Evaluates trained models; a model, token ids or questions go in, named numbers come out.

text.py        nats per token, perplexity and bits per byte of a text
hellaswag.py   the share of HellaSwag's questions that are answered correctly, from its file
harness.py     tasks of lm-evaluation-harness, on an exported model
record.py      adds results to a run directory
"""

from evaluation.errors import EvaluationError

__all__ = ["EvaluationError"]
