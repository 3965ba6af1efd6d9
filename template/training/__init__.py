"""Fine-tune the model on a dataset and measure the loss, with torch, transformers and peft."""
