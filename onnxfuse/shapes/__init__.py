"""What each operator does to dtypes, symbolic shapes and small integer contents.

One rule an operator: it takes a `Call` (a node with the facts of its inputs) and returns the facts of its outputs.
A rule returns None for what it does not know; it never guesses. One exception is `dims.broadcast`: rows of a table that
meet as many tokens are taken to be as many.

Source: the ONNX operator specification, opset 13 to 28, attribute and input forms alike.

fact.py      what is known about a value, and the registry of rules
elementwise  sizes  movement  contraction  attention     the rules
"""

from onnxfuse.shapes import attention, contraction, elementwise, movement, sizes
from onnxfuse.shapes.fact import CONTENT_LIMIT, RULES, SENTINEL, UNKNOWN, Call, Fact, Shape, is_followed, product

__all__ = ["CONTENT_LIMIT", "RULES", "SENTINEL", "UNKNOWN", "Call", "Fact", "Shape", "is_followed", "product"]

_RULE_MODULES = (attention, contraction, elementwise, movement, sizes)  # imported so that their rules register
