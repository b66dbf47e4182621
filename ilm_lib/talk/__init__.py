"""Talking to a model that was trained on dialogues: in the terminal, and by the OpenAI chat protocol."""
