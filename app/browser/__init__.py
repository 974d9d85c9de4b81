"""Networks that run in a browser: one page with weights, tokenizer and the scripts that compute with them."""

from app.browser.page import TOKENIZERS, network_page

__all__ = ["TOKENIZERS", "network_page"]
