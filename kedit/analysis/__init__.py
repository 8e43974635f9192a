"""What edits do inside the model, measured and drawn: similarities, hidden states, importance of layers."""
