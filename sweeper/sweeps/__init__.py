"""Named sweeps that ship: one YAML file each."""
