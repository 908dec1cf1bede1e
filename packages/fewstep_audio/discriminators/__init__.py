"""Discriminators of waves: x (B, N) -> [layers ..., logits (B, n)], the core's interface (fewstep/discriminators/sample.py)."""
