"""The Item-Language Model: item encoder, prompts, the frozen LLM and its decoding."""
