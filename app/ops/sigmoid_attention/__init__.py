"""sigmoid_attention: see README.md for the algebra."""

from app.ops.choice import operator
from app.ops.sigmoid_attention import naive
from app.ops.sigmoid_attention.dropout import dropped_weights
from app.ops.sigmoid_attention.weights import sigmoid_weights

sigmoid_attention = operator(naive.sigmoid_attention)

__all__ = ["dropped_weights", "sigmoid_attention", "sigmoid_weights"]
