"""What everybody uses: errors, values, seeds, options, the words of rows, methods by name."""
