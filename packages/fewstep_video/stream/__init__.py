"""Video as it comes and as it is made: frames in flight, blocks with a cache, what to skip, and whether it is in time."""
