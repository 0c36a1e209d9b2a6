"""Commands beside training: sample, sweep, watch, select, smollm2, export."""
