"""What defenses share: features, masks, losses, curves, statistics."""
