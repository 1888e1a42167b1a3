"""What a person sees of a command in the terminal."""
