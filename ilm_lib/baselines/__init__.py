"""What the LLM is measured against: factorisation, SASRec, popularity."""
