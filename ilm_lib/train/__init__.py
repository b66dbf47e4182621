"""Training: one loop, the losses, phase 1, phase 2 and the pretraining of our LLM."""
