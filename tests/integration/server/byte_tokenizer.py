"""A tokenizer in which every byte is a token: 0 to 255 the bytes, then the special tokens."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from appliance.text import tokenizer
from appliance.text.token_bytes import _BYTE_OF_CHARACTER

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> tokenizer.Tokenizer:
    backend = Tokenizer(models.BPE(dict(_BYTE_OF_CHARACTER), []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>"]  # 256, 257
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    pretrained = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", chat_template=CHAT_TEMPLATE)
    return tokenizer.Tokenizer(pretrained)
