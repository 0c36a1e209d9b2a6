"""Commands beside training: sample, sweep, watch, select_examples, export, smollm2, transfer."""
