"""Fine-tuning: plain gradient steps on matrices or on every parameter."""
