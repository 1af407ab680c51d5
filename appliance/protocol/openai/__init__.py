"""The HTTP bodies of the OpenAI API as msgspec structs, with the extra fields that vLLM gave them."""
