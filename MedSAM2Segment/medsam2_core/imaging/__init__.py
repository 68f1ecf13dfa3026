"""What a volume is: voxels, their place in the patient, slices, grey values, and reading them from files."""
