"""Vocoders: mel -> wave by flow matching in few steps (PeriodWave, SpecFlow), and their adversarial tuning."""
