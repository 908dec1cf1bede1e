"""Video with few evaluations: teachers over diffusers' networks, students, streams, metrics. Needs the extra `video`."""
