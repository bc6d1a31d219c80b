"""The files of sessions on the server's disk: reading, writing, listing, watching, ownership."""
