"""bank_router: see README.md for the algebra."""

from app.ops.bank_router import naive
from app.ops.choice import operator

bank_router = operator(naive.bank_router)

__all__ = ["bank_router"]
