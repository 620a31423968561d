"""Training: optimizers, monitors, and the Lightning modules of pretraining and fine-tuning."""
