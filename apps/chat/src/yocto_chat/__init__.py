"""Talk to a yocto model in the terminal."""
