"""What every method shares: the LightningModule, the loop over phases, the callback contract. It knows no method."""
