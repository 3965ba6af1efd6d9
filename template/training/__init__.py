"""Fine-tune the model on a dataset and measure its loss, with torch."""
