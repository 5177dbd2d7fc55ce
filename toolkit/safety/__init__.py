"""Safe fine-tuning: who tells an example's risk (probe, critic), and how a training is held by it."""
