"""What looks at the model while it trains: recorder, vitals, validation."""
