"""Where things run: connecting to Ray and starting it."""
