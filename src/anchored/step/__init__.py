"""One training step: batch, attention, projection and loss, optimizer, memory."""
