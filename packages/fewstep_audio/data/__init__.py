"""Speech as training data: corpora, recordings, noise, and the Lightning data modules over them."""
