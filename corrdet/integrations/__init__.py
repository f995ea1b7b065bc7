"""The losses inside other frameworks, of which each module imports its own and no other."""
