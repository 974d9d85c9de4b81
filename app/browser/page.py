"""A packed network as one HTML file that generates text where it is opened, without a network.

The scripts beside this file are part of the page as they stand, in this order: ``weights.js`` unpacks, ``network.js``
computes, ``tokenizers.js`` reads and writes text, ``page.js`` answers to a person.
"""

import base64
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from app.analysis.html import Markup, data, element, page, table
from app.exports import Packed, as_safetensors
from app.models import LanguageModel
from app.models.tilelli import TilelliLM
from datamodules.tokenizers import Tokenizer

SCRIPTS = ("weights.js", "network.js", "tokenizers.js", "page.js")
STYLE = "page.css"
#: kinds of tokenizers that ``tokenizers.js`` has
TOKENIZERS = ("char", "byte", "bpe", "gpt2")
#: of the description, what the scripts read
_READ = ("network", "block_size")
_FORM = Markup("""<form id="form">
<label>text to go on from
<textarea id="prompt" spellcheck="false" autocomplete="off" placeholder="nothing: a new line"></textarea></label>
<div class="numbers">
<label>tokens<input id="tokens" type="number" min="1" max="100000" step="1" value="400" required></label>
<label>temperature<input id="temperature" type="number" min="0" max="10" step="any" value="0.8" required></label>
<label>seed<input id="seed" type="number" min="0" max="4294967295" step="1" value="0" required></label>
</div>
<div class="buttons"><button type="submit">Write</button><button type="button" id="stop" disabled>Stop</button>
<span class="soft"><kbd>Ctrl</kbd> <kbd>Enter</kbd> writes, <kbd>Esc</kbd> stops</span></div>
</form>
<p id="said" role="status"></p>
<pre id="output" tabindex="0" role="region" aria-label="the text"></pre>""")


def network_page(
    network: LanguageModel,
    weights: Packed,
    tokenizer: Tokenizer,
    description: Mapping[str, Any],
    figures: Mapping[str, str],
) -> str:
    """The page.

    Args:
        network: a Tilelli network whose router chooses.
        weights: of the network, packed.
        tokenizer: of a kind in :data:`TOKENIZERS`.
        description: of an export.
        figures: of the network, what the page says of it: by name, in words.

    Raises:
        ValueError: the scripts do not compute this network, or have no such tokenizer.
    """
    _require_known(network, tokenizer)
    title = f"{type(network).__name__}, {sum(p.numel() for p in network.parameters()):,} parameters"
    read = {key: description[key] for key in _READ} | {"packed": weights.shapes, "tied": weights.tied}
    content = base64.b64encode(as_safetensors(weights.tensors)).decode()
    body = [
        element("h1", title),
        element(
            "p",
            "A language model that runs in this page: nothing is loaded and nothing is sent. Temperature 0 takes the "
            "likeliest token, higher ones draw more freely.",
            class_="soft",
        ),
        _FORM,
        element("noscript", "The network is computed by scripts of this page; allow scripts to run it."),
        element("h2", "The network"),
        table(("", ""), figures.items()),
        element(
            "p",
            "Losses are nats per token on held-out text; bpb is bits per byte. How the network computes is written to "
            "be read: see the scripts at the end of this page's source, weights, network, tokenizers and page.",
        ),
        data("config", read),
        data("tokenizer", tokenizer.to_dict()),
        Markup(f'<script id="weights" type="text/plain">{content}</script>'),
        *(Markup(f"<script>\n{_source(name)}</script>") for name in SCRIPTS),
    ]
    return page(title, body, style=_source(STYLE))


def _require_known(network: LanguageModel, tokenizer: Tokenizer) -> None:
    name = type(network).__name__
    if type(network) is not TilelliLM:
        raise ValueError(f"{name}: the page computes TilelliLM and no other architecture")
    if network.bank_choice != "router":
        raise ValueError(
            f"bank_choice: {network.bank_choice}: the page computes networks whose router chooses the bank"
        )
    if tokenizer.kind not in TOKENIZERS:
        raise ValueError(
            f"tokenizer {tokenizer.kind}: the page has {', '.join(TOKENIZERS[:-1])} and {TOKENIZERS[-1]}"
        )


def _source(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
