"""Mosaics of real handwritten digits with reading, counting and place questions."""
