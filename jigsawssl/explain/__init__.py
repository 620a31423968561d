"""What an image classifier looks at: maps over images, how far they can be trusted, and a gallery of them."""
