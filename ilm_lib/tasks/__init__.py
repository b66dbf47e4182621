"""What models are asked: recommendation (OpenP5) and writing (ELM-24). Examples in, prompts and measures out."""
