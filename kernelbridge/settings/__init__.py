"""The settings of a server: where they are written, how each kind is read, and the object that has them all."""
