"""The training loop, once: `trainer` (the loop), `train_config` (its options), and the parts that it is made of."""
