"""The commands of yocto: prepare, train, sample."""
