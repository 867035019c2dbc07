"""What attacks share: stamps, selections, networks, crafted images."""
